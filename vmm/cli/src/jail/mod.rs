//! The rights that the process gives up, so that a guest which takes it over gains nothing.
//!
//! In this order: [`Jail::begin`] before anything is opened; [`Jail::isolate`] when what is outside is connected;
//! [`Jail::drop_privileges`] when all files are open; [`Jail::close`] when the machine is about to run. Threads that start later get their filter as they start.

mod confine;
pub mod landlock;
mod program;
mod raw;
mod rules;
mod seccomp;
mod violation;

use std::cell::{OnceCell, RefCell};
use std::fs::File;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result};
use rustix::process::{DumpableBehavior, Resource, Rlimit, set_dumpable_behavior, setrlimit};

use self::landlock::{AllowedPath, Kept};
use self::raw::Inherited;
pub use self::raw::{exit_now, fork};
use crate::command::EXIT_NO_STATUS;
use crate::config::{JailConfig, ProcessConfig};
use crate::logger;
use tinyvmm::worker::{self, ThreadKind};

/// The role of a thread, for which it has a list of system calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum FilterRole {
    /// The main thread, which owns the machine, and builds it again after a reset.
    Main,
    /// A thread of the machine's, or of the API.
    Worker(ThreadKind),
    /// The process that connects a guest's vsock to the host's programs.
    Dialer,
}

#[cfg(test)]
impl FilterRole {
    const ALL: [Self; 14] = [
        Self::Main,
        Self::Worker(ThreadKind::Starter),
        Self::Worker(ThreadKind::Vcpu),
        Self::Worker(ThreadKind::Device),
        Self::Worker(ThreadKind::Network),
        Self::Worker(ThreadKind::Vsock),
        Self::Worker(ThreadKind::VhostUser),
        Self::Worker(ThreadKind::Memory),
        Self::Worker(ThreadKind::Console),
        Self::Worker(API),
        Self::Worker(ATTACH),
        Self::Worker(COMMAND),
        Self::Worker(GUARD),
        Self::Dialer,
    ];
}

/// The thread that serves clients of the API.
pub const API: ThreadKind = ThreadKind::Program("Api");
/// The thread that serves those who are attached to the console of a machine with a name.
pub const ATTACH: ThreadKind = ThreadKind::Program("Attach");
/// The thread that connects a command in the guest with the standard streams.
pub const COMMAND: ThreadKind = ThreadKind::Program("Command");

/// The thread that ends a process whose guest's memory does not come.
pub const GUARD: ThreadKind = ThreadKind::Program("Guard");

/// Set once new threads get a filter.
static FILTERS: AtomicBool = AtomicBool::new(false);

/// The main thread may open files in some paths; the threads that it starts then may not.
static MAIN_OPENS: AtomicBool = AtomicBool::new(false);

/// Whether this host's kernel has seccomp filters.
pub fn has_seccomp() -> bool {
    raw::has_seccomp()
}

/// Exit code when a thread made a system call that its filter forbids.
pub const EXIT_JAIL: u8 = 10;
/// That exit code under the name `firecracker` (Firecracker's src/vmm/src/lib.rs, FcExitCode).
const EXIT_BAD_SYSCALL: u8 = 148;

/// The jail of this process.
pub struct Jail<'a> {
    on: bool,
    config: Option<&'a JailConfig>,
    /// The exit code of a violation.
    exit_code: u8,
    /// Kept open until the files are open that may be named by them, as in /dev/fd/3.
    inherited: RefCell<Inherited>,
    /// The folder of all machines with names.
    names: OnceCell<Rc<File>>,
}

impl<'a> Jail<'a> {
    /// Lists inherited descriptors. To be called while nothing is open.
    pub fn begin(process: &'a ProcessConfig) -> Result<Self> {
        let exit_code = match process.command.is_empty() {
            _ if process.firecracker.is_some() => EXIT_BAD_SYSCALL,
            true => EXIT_JAIL,
            false => EXIT_NO_STATUS,
        };
        let (on, config) = (!process.no_jail, process.jail.as_ref());
        if !on {
            logger::print_message(
                "--no-jail: this process may do all that its user may, and so may a guest that breaks out",
            );
            let (inherited, names) = (RefCell::default(), OnceCell::new());
            return Ok(Self { on, config, exit_code, inherited, names });
        }
        let inherited = Inherited::find().unwrap_or_else(|error| {
            log::warn!(
                "inherited files stay open: listing them takes /proc or Linux 5.9 ({error})"
            );
            Inherited::default()
        });
        let none = Rlimit { current: Some(0), maximum: Some(0) };
        setrlimit(Resource::Core, none).context("cannot forbid core dumps")?;
        let (inherited, names) = (RefCell::new(inherited), OnceCell::new());
        Ok(Self { on, config, exit_code, inherited, names })
    }

    /// Has the main thread remove empty folders of `names`, even once the jail is closed.
    pub fn keep_names(&self, names: Rc<File>) {
        self.names.get_or_init(|| names);
    }

    fn kept<'b>(&'b self, api: Option<&'b File>) -> Kept<'b> {
        Kept { api, names: self.names.get().map(|names| &**names) }
    }

    /// Enters new namespaces where the configuration asks for that: only the process in these returns from here. To be
    /// called while no other thread runs.
    pub fn isolate(&mut self) -> Result<()> {
        let Some(config) = self.config.filter(|_| self.on) else { return Ok(()) };
        confine::isolate(config, self.inherited.get_mut())
            .with_context(|| format!("--jail {config}"))
    }

    /// Becomes the configuration's user, with its folder as the root.
    pub fn drop_privileges(&self) -> Result<()> {
        let Some(config) = self.config.filter(|_| self.on) else { return Ok(()) };
        confine::drop_privileges(config).with_context(|| format!("--jail {config}"))
    }

    /// Closes inherited descriptors and gives new threads a filter: the API's thread has one from its start, long
    /// before the others. A forbidden call ends the process. The main thread may remove files of `folder`.
    pub fn prepare(&self, folder: Option<&File>) -> Result<()> {
        self.inherited.take().close();
        if self.on && has_seccomp() && !FILTERS.load(Ordering::SeqCst) {
            worker::on_thread_start(enter_thread);
            violation::watch(self.exit_code)?;
            rules::keep_folders(self.kept(folder));
            FILTERS.store(true, Ordering::SeqCst);
        }
        Ok(())
    }

    /// Closes the jail: from now on no file is opened, and each thread makes only the system calls of its kind. Files
    /// in `folder` can still be removed, and this thread can open files in `paths` if the host's kernel can limit it to
    /// these. Returns whether it can.
    pub fn close(&self, folder: Option<&File>, places: &[AllowedPath]) -> Result<bool> {
        if !self.on {
            return Ok(true);
        }
        self.prepare(folder)?;
        let places = if has_seccomp() { places } else { &[] };
        // Other processes of this user can neither trace this one nor read its memory.
        set_dumpable_behavior(DumpableBehavior::NotDumpable).context("cannot forbid tracing")?;
        let landlock = landlock::forbid_opening(self.kept(folder), places).context("Landlock")?;
        match landlock {
            Some(version) => log::debug!("Landlock {version} is in force"),
            None => log::info!("this host's kernel has no Landlock: see tinyvmm doctor"),
        }
        hook::try_to_open("landlock");
        if !has_seccomp() {
            logger::print_message(
                "this host's kernel has no seccomp filters: a guest that breaks out can make any system call",
            );
            return Ok(false);
        }
        let opens = landlock.is_some() && !places.is_empty();
        MAIN_OPENS.store(opens, Ordering::SeqCst);
        worker::spawn_starter_thread().context("cannot start threads")?;
        if opens {
            seccomp::apply_to_main_that_opens().context("cannot filter system calls")?;
            hook::break_out(FilterRole::Main);
        } else {
            restrict(FilterRole::Main)?;
        }
        Ok(opens)
    }
}

/// Gives this thread the filter of its kind. Before [`Jail::close`], and without a jail, there is none.
fn enter_thread(kind: ThreadKind) {
    // The starter's filter applies to all threads that it starts.
    let is_alone = match kind {
        API | ATTACH | GUARD => true,
        ThreadKind::Starter => MAIN_OPENS.load(Ordering::SeqCst),
        _ => false,
    };
    let own_landlock = || match FILTERS.load(Ordering::SeqCst) && is_alone {
        true => landlock::forbid_opening(Kept::default(), &[]).map(drop),
        false => Ok(()),
    };
    if let Err(error) = own_landlock().and_then(|()| restrict(FilterRole::Worker(kind))) {
        // No machine runs outside its jail.
        logger::print_message(format_args!("the jail of a {kind:?} thread: {error:#}"));
        std::process::exit(crate::cli::EXIT_INTERNAL.into());
    }
}

/// Closes what this process was given open but the standard three. To be called before it opens anything.
pub fn close_inherited() -> Result<()> {
    Inherited::find().map(|mut all| all.close()).context("cannot close inherited files")
}

/// Limits this process, which is not the machine's, to what a dialer does in `folder`, as the user of `config`. To be
/// called while nothing is open but the standard three and `folder`.
pub fn limit_dialer(folder: &File, config: Option<&JailConfig>) -> Result<()> {
    if let Some(config) = config {
        confine::become_user(config)?;
    }
    let kept = Kept { api: Some(folder), names: None };
    landlock::forbid_opening(kept, &[]).context("Landlock")?;
    set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    if has_seccomp() { seccomp::apply(FilterRole::Dialer) } else { Ok(()) }
}

fn restrict(role: FilterRole) -> Result<()> {
    if !FILTERS.load(Ordering::SeqCst) {
        return Ok(());
    }
    seccomp::apply(role).context("cannot filter system calls")?;
    hook::break_out(role);
    Ok(())
}

/// For tests, in debug builds only: `TINYVMM_BREAK_OUT` names the thread that tries what the jail forbids.
#[cfg(debug_assertions)]
mod hook {
    use std::fs::File;

    use super::{FilterRole, ThreadKind};
    use crate::logger;

    /// Opens a file where Landlock alone forbids it, and logs the result.
    pub(super) fn try_to_open(whose: &str) {
        if std::env::var("TINYVMM_BREAK_OUT").is_ok_and(|name| name == whose) {
            let opened = File::open("/etc/passwd").map(drop);
            logger::print_message(format_args!("/etc/passwd: {opened:?}"));
        }
    }

    /// Makes a system call that a filter forbids: the process ends.
    pub(super) fn break_out(role: FilterRole) {
        match role {
            FilterRole::Worker(ThreadKind::Program(name)) => try_to_open(name),
            FilterRole::Worker(kind) => try_to_open(&format!("{kind:?}")),
            FilterRole::Main => try_to_open("Main"),
            FilterRole::Dialer => {}
        }
    }
}

#[cfg(not(debug_assertions))]
mod hook {
    pub(super) fn try_to_open(_: &str) {}
    pub(super) fn break_out(_: super::FilterRole) {}
}
