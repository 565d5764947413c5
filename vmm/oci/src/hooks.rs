//! Programs of the engine's that run at points of a container's life, with its state on their standard input
//! (runtime.md, "Lifecycle"). Those that are to run within the container are refused.

use std::io::Write;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use oci_spec::runtime::{Hook, Hooks, Spec};

/// How long one may take if it does not say so itself.
const PATIENCE: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_millis(5);

/// Refuses what cannot be run.
pub fn check(spec: &Spec) -> Result<()> {
    let hooks = spec.hooks().as_ref();
    let within = |of: fn(&Hooks) -> &Option<Vec<Hook>>| {
        hooks.is_some_and(|hooks| of(hooks).as_ref().is_some_and(|list| !list.is_empty()))
    };
    ensure!(
        !within(Hooks::create_container) && !within(Hooks::start_container),
        "hooks: createContainer and startContainer run within a container, and a machine has no such place"
    );
    Ok(())
}

/// Runs a list of them.
pub fn run(hooks: Option<&Vec<Hook>>, state: &str) -> Result<()> {
    for hook in hooks.into_iter().flatten() {
        one(hook, state).with_context(|| format!("hook {}", hook.path().display()))?;
    }
    Ok(())
}

fn one(hook: &Hook, state: &str) -> Result<()> {
    let mut command = Command::new(hook.path());
    if let Some([_, args @ ..]) = hook.args().as_deref() {
        command.args(args);
    }
    command.env_clear();
    for (name, value) in hook.env().iter().flatten().filter_map(|entry| entry.split_once('=')) {
        command.env(name, value);
    }
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::null()).spawn()?;
    if let Some(mut input) = child.stdin.take() {
        // It need not read.
        let _ = input.write_all(state.as_bytes());
    }
    let patience =
        hook.timeout().and_then(|s| u64::try_from(s).ok()).map_or(PATIENCE, Duration::from_secs);
    let start = Instant::now();
    loop {
        if let Some(status) = child.try_wait()? {
            ensure!(status.success(), "{status}");
            return Ok(());
        }
        if start.elapsed() > patience {
            let _ = child.kill();
            let _ = child.wait();
            anyhow::bail!("it has not ended within {} s", patience.as_secs());
        }
        thread::sleep(PAUSE);
    }
}
