//! Runs tinyvmm as a user would, in a folder of its own and with a time limit.
//!
//! ```ignore
//! Vmm::new().guest(guests::hello).args(["--mem", "32M"]).run().exits(0).prints("hello");
//! ```

use std::env;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, LazyLock, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

pub use crate::dir::Dir;
use crate::guests;

/// The binary under test: this build's, unless `$TINYVMM` names another.
pub static TINYVMM: LazyLock<String> =
    LazyLock::new(|| env::var("TINYVMM").unwrap_or_else(|_| env!("CARGO_BIN_EXE_tinyvmm").into()));
/// The limit of each wait before the test fails.
const LIMIT: Duration = Duration::from_secs(90);

/// A tinyvmm to be started.
pub struct Vmm {
    dir: Dir,
    command: Command,
    stdout: Option<Stdio>,
    stderr: Option<Stdio>,
    limit: Duration,
}

impl Vmm {
    pub fn new() -> Self {
        Self::started_by(&[])
    }

    /// A tinyvmm that another program starts, which gets tinyvmm and its arguments, e.g. `setsid`.
    pub fn started_by(wrapper: &[&str]) -> Self {
        let dir = Dir::new();
        let mut words = wrapper.iter().copied().chain([TINYVMM.as_str()]);
        let mut command = Command::new(words.next().unwrap());
        command.args(words).current_dir(&dir.0).stdin(Stdio::null());
        Self { dir, command, stdout: None, stderr: None, limit: LIMIT }
    }

    /// A tinyvmm under another name.
    pub fn named(name: &str) -> Self {
        let mut vmm = Self::new();
        std::os::unix::fs::symlink(&*TINYVMM, vmm.dir.path(name)).unwrap();
        vmm.command = Command::new(vmm.dir.path(name));
        vmm.command.current_dir(&vmm.dir.0).stdin(Stdio::null());
        vmm
    }

    pub fn args<S: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = S>) -> Self {
        self.command.args(args);
        self
    }

    pub fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.command.env(name, value);
        self
    }

    /// Creates a file in tinyvmm's folder.
    pub fn file(self, name: &str, contents: impl AsRef<[u8]>) -> Self {
        fs::write(self.dir.path(name), contents).unwrap();
        self
    }

    /// Creates a file of `len` zero bytes.
    pub fn sparse_file(self, name: &str, len: u64) -> Self {
        File::create(self.dir.path(name)).unwrap().set_len(len).unwrap();
        self
    }

    /// Sets a guest of [`crate::guests`] as the kernel.
    pub fn guest(self, code: fn() -> Vec<u8>) -> Self {
        self.kernel(&guests::elf(&code()))
    }

    /// Sets the contents of the kernel's file.
    pub fn kernel(self, image: &[u8]) -> Self {
        self.file("kernel", image).args(["--kernel", "kernel"])
    }

    pub fn stdin(mut self, stdin: impl Into<Stdio>) -> Self {
        self.command.stdin(stdin);
        self
    }

    /// Sends standard output there, instead of collecting it.
    pub fn stdout(mut self, stdout: impl Into<Stdio>) -> Self {
        self.stdout = Some(stdout.into());
        self
    }

    /// Sends standard error there, instead of collecting it.
    pub fn stderr(mut self, stderr: impl Into<Stdio>) -> Self {
        self.stderr = Some(stderr.into());
        self
    }

    /// Adds to the limit of each wait.
    pub fn patiently(mut self, more: Duration) -> Self {
        self.limit += more;
        self
    }

    pub fn dir(&self) -> &Dir {
        &self.dir
    }

    /// Runs tinyvmm to its end.
    #[track_caller]
    pub fn run(self) -> Outcome {
        self.start().wait()
    }

    #[track_caller]
    pub fn start(mut self) -> Running {
        let before = self.dir.entries();
        self.command.stdout(self.stdout.take().unwrap_or_else(Stdio::piped));
        self.command.stderr(self.stderr.take().unwrap_or_else(Stdio::piped));
        let mut child = self.command.spawn().expect("tinyvmm can be started");
        // A pipe that the command keeps open would hide that its reader or writer is gone.
        self.command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let stdout = Collector::new(child.stdout.take());
        let stderr = Collector::new(child.stderr.take());
        let deadline = Instant::now() + self.limit;
        Running { child, stdout, stderr, deadline, dir: self.dir, before }
    }
}

/// Reads a pipe to its end, on a thread.
struct Collector {
    text: Arc<(Mutex<Vec<u8>>, Condvar)>,
    thread: JoinHandle<()>,
}

impl Collector {
    fn new(pipe: Option<impl Read + Send + 'static>) -> Self {
        let text = Arc::new((Mutex::new(Vec::new()), Condvar::new()));
        let shared = text.clone();
        let thread = thread::spawn(move || {
            let Some(mut pipe) = pipe else { return };
            let mut bytes = [0; 4096];
            while let Ok(len @ 1..) = pipe.read(&mut bytes) {
                shared.0.lock().unwrap().extend(&bytes[..len]);
                shared.1.notify_all();
            }
        });
        Self { text, thread }
    }

    fn so_far(&self) -> Vec<u8> {
        self.text.0.lock().unwrap().clone()
    }

    /// Waits until `needle` was read; false after `deadline`.
    fn wait_for(&self, needle: &[u8], deadline: Instant) -> bool {
        let lacks = |text: &mut Vec<u8>| !text.windows(needle.len()).any(|part| part == needle);
        let left = deadline.saturating_duration_since(Instant::now());
        let text = self.text.0.lock().unwrap();
        let (_text, wait) = self.text.1.wait_timeout_while(text, left, lacks).unwrap();
        !wait.timed_out()
    }
}

/// A running tinyvmm. Dropping it kills it.
pub struct Running {
    child: Child,
    stdout: Collector,
    stderr: Collector,
    deadline: Instant,
    dir: Dir,
    before: Vec<String>,
}

impl Running {
    /// Waits until the guest has printed `text`.
    #[track_caller]
    pub fn prints(self, text: &str) -> Self {
        if !self.stdout.wait_for(text.as_bytes(), self.deadline) {
            panic!("'{text}' is not printed; {}", self.described());
        }
        self
    }

    /// Waits until tinyvmm has written `text` to standard error.
    #[track_caller]
    pub fn says(self, text: &str) -> Self {
        if !self.stderr.wait_for(text.as_bytes(), self.deadline) {
            panic!("'{text}' is not said; {}", self.described());
        }
        self
    }

    /// Waits until `condition` is true.
    #[track_caller]
    pub fn until(self, condition: impl Fn(&Self) -> bool) -> Self {
        while !condition(&self) {
            assert!(Instant::now() < self.deadline, "never true; {}", self.described());
            thread::sleep(Duration::from_millis(5));
        }
        self
    }

    /// Types `text`, where standard input is a pipe.
    pub fn types(mut self, text: &str) -> Self {
        let stdin = self.child.stdin.as_mut().expect("stdin(Stdio::piped())");
        stdin.write_all(text.as_bytes()).expect("tinyvmm takes input");
        self
    }

    /// Closes standard input.
    pub fn ends_input(mut self) -> Self {
        self.child.stdin = None;
        self
    }

    pub fn signal(&self, signal: i32) {
        let pid = i32::try_from(self.child.id()).unwrap();
        // SAFETY: sends a signal to a child that was not waited for, so the id is still its own.
        let sent = unsafe { libc::kill(pid, signal) };
        assert_eq!(sent, 0, "tinyvmm still runs");
    }

    /// The folder of tinyvmm.
    pub fn dir(&self) -> &Dir {
        &self.dir
    }

    /// A file of its folder in /proc.
    pub fn proc(&self, name: &str) -> PathBuf {
        Path::new("/proc").join(self.child.id().to_string()).join(name)
    }

    /// Anonymous memory of the process that is in RAM, in KiB: the guest's, heap and stacks. Code that runs for the first
    /// time is none of it.
    pub fn rss_kib(&self) -> u64 {
        let status = fs::read_to_string(self.proc("status")).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
        line.trim().trim_end_matches(" kB").parse().unwrap()
    }

    /// Names of the threads, sorted.
    pub fn threads(&self) -> Vec<String> {
        let tasks = fs::read_dir(self.proc("task")).unwrap();
        let name = |task: fs::DirEntry| fs::read_to_string(task.path().join("comm")).ok();
        let mut names: Vec<_> = tasks.filter_map(|task| name(task.ok()?)).collect();
        names.iter_mut().for_each(|name| *name = name.trim().into());
        names.sort();
        names
    }

    /// Waits for the end of the process.
    #[track_caller]
    pub fn wait(mut self) -> Outcome {
        let status = loop {
            match self.child.try_wait().unwrap() {
                Some(status) => break status,
                None if Instant::now() < self.deadline => thread::sleep(Duration::from_millis(2)),
                None => panic!("it does not end; {}", self.described()),
            }
        };
        // A pipe ends with the last process that has it open: a process left behind would be seen here.
        while !(self.stdout.thread.is_finished() && self.stderr.thread.is_finished()) {
            assert!(Instant::now() < self.deadline, "something it started outlives it");
            thread::sleep(Duration::from_millis(2));
        }
        let (stdout, stderr) = (self.stdout.so_far(), self.stderr.so_far());
        let dir = std::mem::replace(&mut self.dir, Dir::new());
        let before = std::mem::take(&mut self.before);
        Outcome { status, stdout, stderr: String::from_utf8(stderr).unwrap(), dir, before }
    }

    fn described(&self) -> String {
        let text = |collector: &Collector| tail(&collector.so_far());
        format!("stdout: {}\nstderr: {}", text(&self.stdout), text(&self.stderr))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Both fail if the process has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The end of a text that may be long.
fn tail(bytes: &[u8]) -> String {
    String::from_utf8_lossy(&bytes[bytes.len().saturating_sub(800)..]).into_owned()
}

/// The end of a tinyvmm, with its output.
pub struct Outcome {
    status: ExitStatus,
    pub stdout: Vec<u8>,
    pub stderr: String,
    dir: Dir,
    before: Vec<String>,
}

impl Outcome {
    /// The exit code.
    #[track_caller]
    pub fn code(&self) -> i32 {
        self.status.code().expect("it exits and is not killed")
    }

    #[track_caller]
    pub fn exits(self, code: i32) -> Self {
        let (stdout, stderr) = (tail(&self.stdout), &self.stderr);
        let context = format!("stdout: {stdout}\nstderr: {stderr}");
        assert_eq!(self.status.code(), Some(code), "exit code ({}); {context}", self.status);
        self
    }

    #[track_caller]
    pub fn prints(self, text: &str) -> Self {
        let stdout = String::from_utf8_lossy(&self.stdout);
        assert!(stdout.contains(text), "stdout lacks '{text}': {}", tail(&self.stdout));
        self
    }

    /// Checks that nothing is on standard error.
    #[track_caller]
    pub fn silently(self) -> Self {
        assert_eq!(self.stderr, "", "standard error");
        self
    }

    /// Checks that one line is on standard error, with all of `words`.
    #[track_caller]
    pub fn says(self, words: &[&str]) -> Self {
        let stderr = &self.stderr;
        assert!(stderr.starts_with("tinyvmm: ") && stderr.ends_with('\n'), "stderr: {stderr}");
        assert_eq!(stderr.lines().count(), 1, "one line: {stderr}");
        for word in words {
            assert!(stderr.contains(word), "'{word}' is not in: {stderr}");
        }
        self
    }

    /// Checks that tinyvmm has refused to start: one line with `words`, no output, no files created or removed.
    #[track_caller]
    pub fn refuses(self, code: i32, words: &[&str]) {
        let outcome = self.exits(code).says(words).leaves_nothing();
        assert_eq!(tail(&outcome.stdout), "", "standard output");
    }

    /// Checks that the folder is as it was, and that no process works in it.
    #[track_caller]
    pub fn leaves_nothing(self) -> Self {
        assert_eq!(self.dir.entries(), self.before, "files in its folder");
        for process in fs::read_dir("/proc").unwrap().flatten() {
            let cwd = fs::read_link(process.path().join("cwd")).unwrap_or_default();
            assert_ne!(cwd, self.dir.0, "{process:?} is left behind");
        }
        self
    }

    /// The folder of tinyvmm.
    pub fn dir(&self) -> &Dir {
        &self.dir
    }

    /// The contents of a file in the folder.
    pub fn file(&self, name: &str) -> String {
        String::from_utf8_lossy(&fs::read(self.dir.path(name)).unwrap()).into_owned()
    }
}
