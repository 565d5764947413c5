//! What people do with machines that have names: `tinyvmm ps`, `stop`, `logs` and `attach`.

mod attach;
mod logs;
mod ps;
mod stop;

pub use self::attach::{AttachOptions, attach};
pub use self::logs::{LogsOptions, logs};
pub use self::ps::{PsOptions, ps};
pub use self::stop::{StopOptions, stop};
