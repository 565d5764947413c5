//! End-to-end tests of the `tinyvmm` command.
