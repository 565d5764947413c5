//! Plays the guest's driver without KVM.
