//! Devices that other processes serve: folders of the host, by virtiofsd, and what listens at a socket.

mod virtiofsd;

use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use tinyvmm::backend::Backend;
use tinyvmm::config::{MachineConfig, VhostUserKind};

use self::virtiofsd::Virtiofsd;
#[cfg(feature = "image")]
pub use self::virtiofsd::is_installed;
pub use self::virtiofsd::version;

/// How long a process may take until it has answered the first questions.
const PATIENCE: Duration = Duration::from_secs(10);

/// The processes of a machine. They end when the machine's process does, or its connections.
#[derive(Default)]
pub struct Shares {
    /// Those of shares, then others, in the order of the configuration.
    pub backends: Vec<Backend>,
    /// What keeps their messages from being read by nobody, which would end them.
    _processes: Vec<Virtiofsd>,
}

impl Shares {
    /// Starts those that `machine` needs, and connects to those that are there.
    pub fn open(machine: &MachineConfig) -> Result<Self> {
        let mut shares = Self::default();
        let mut started = Vec::new();
        for share in &machine.share {
            started.push(Virtiofsd::start(share).with_context(|| format!("--share {share}"))?);
        }
        for (share, (mut process, stream)) in machine.share.iter().zip(started) {
            let greeted = greet(stream, &VhostUserKind::Files(share.tag.clone()));
            let backend = greeted.map_err(|error| process.explain(error));
            shares.backends.push(backend.with_context(|| format!("--share {share}"))?);
            shares._processes.push(process);
        }
        for other in &machine.vhost_user {
            let stream = UnixStream::connect(&other.socket).context("cannot connect to it");
            let backend = stream.and_then(|stream| greet(stream, &other.kind));
            shares.backends.push(backend.with_context(|| format!("--vhost-user {other}"))?);
        }
        Ok(shares)
    }
}

/// Greets the process at the other end of `stream`, for as long as [`PATIENCE`].
fn greet(stream: UnixStream, kind: &VhostUserKind) -> Result<Backend> {
    let (queues, config_len) = kind.shape();
    let (answered, answer) = mpsc::channel::<()>();
    let watched = stream.try_clone()?;
    let watch = thread::spawn(move || {
        let late = answer.recv_timeout(PATIENCE) == Err(mpsc::RecvTimeoutError::Timeout);
        if late {
            let _ = watched.shutdown(Shutdown::Both);
        }
        late
    });
    let greeted = Backend::greet(stream, queues, config_len);
    drop(answered);
    let late = watch.join().unwrap_or_default();
    greeted.with_context(|| match late {
        true => format!("what serves it has not answered for {} s", PATIENCE.as_secs()),
        false => "what serves it does not speak vhost-user as it should".into(),
    })
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::net::UnixListener;

    use vmm_sys_util::tempdir::TempDir;

    use super::*;

    #[test]
    fn what_does_not_speak_the_protocol_is_refused() {
        let folder = TempDir::new().unwrap();
        let socket = folder.as_path().join("socket");
        let machine = || MachineConfig {
            vhost_user: vec![format!("socket={},kind=blk", socket.display()).parse().unwrap()],
            ..MachineConfig::default()
        };
        let error = |machine| format!("{:#}", Shares::open(&machine).err().unwrap());
        assert!(error(machine()).contains("cannot connect to it: No such file"));
        let listener = UnixListener::bind(&socket).unwrap();
        let other = thread::spawn(move || {
            for answer in [&b""[..], b"HTTP/1.1 400 Bad Request\r\n\r\n", &[0xff; 4096]] {
                let (mut stream, _) = listener.accept().unwrap();
                // It may hang up first.
                let _ = stream.write_all(answer);
            }
        });
        for _ in 0..3 {
            let error = error(machine());
            assert!(error.contains("kind=blk: what serves it does not speak"), "{error}");
        }
        other.join().unwrap();
    }
}
