//! The agent's other requests, made of it directly.

use agent_wire::{Exec, HELLO, Identity, Inbound, Kind, put};
use rustix::process::geteuid;

use super::*;

/// What an agent answers to a request, with a host name of its own if `apart`, and that name afterwards.
fn answer(kind: Kind, payload: &[u8], apart: bool) -> (Kind, Vec<u8>, String) {
    let (mut ours, its) = UnixStream::pair().unwrap();
    let mut agent = Command::new(if apart { "unshare" } else { "sh" });
    agent.args(if apart { &["-u", "sh"][..] } else { &[] });
    agent.args(["-c", "\"$0\" --connection && uname -n", AGENT]).stdin(OwnedFd::from(its));
    let agent = agent.stdout(std::process::Stdio::piped()).spawn().unwrap();
    let mut request = HELLO.to_vec();
    put(&mut request, kind, payload);
    ours.write_all(&request).unwrap();
    let mut inbound = Inbound::default();
    let (kind, payload) = loop {
        if let Some((kind, payload)) = inbound.next().unwrap() {
            break (kind, payload.to_vec());
        }
        let len = ours.read(inbound.room()).unwrap();
        assert!(len > 0, "the agent answers");
        inbound.add(len);
    };
    drop(ours); // after an identity there may be a command
    let output = agent.wait_with_output().unwrap();
    (kind, payload, String::from_utf8(output.stdout).unwrap())
}

#[test]
fn the_agent_says_that_it_is_ready_and_refuses_what_it_does_not_know() {
    assert_eq!(answer(Kind::Ready, b"", false).0, Kind::Done);
    for kind in [Kind::Exec, Kind::Identity] {
        let (answer, why, _) = answer(kind, &[99, 0, 0, 0, 0], false);
        assert_eq!(answer, Kind::Failure);
        assert!(String::from_utf8_lossy(&why).contains("does not know this request"), "{why:?}");
    }
    let unfit = Exec { user: Some(b"no-such-user".into()), ..Exec::default() };
    let (answer, why, _) = answer(Kind::Exec, &unfit.encode().unwrap(), false);
    assert_eq!((answer, why[0]), (Kind::Failure, 126));
}

#[test]
fn the_agent_takes_an_identity_and_names_the_part_that_it_cannot_take() {
    if !geteuid().is_root() {
        return;
    }
    let name = Identity { host_name: Some(b"clone-7".into()), ..Identity::default() };
    let (kind, _, host_name) = answer(Kind::Identity, &name.encode().unwrap(), true);
    assert_eq!((kind, &host_name[..]), (Kind::Done, "clone-7\n"));
    let macs = vec![([2, 9, 9, 9, 9, 9], [2, 0, 0, 0, 0, 1])];
    let unfit = Identity { macs, ..name };
    let (kind, why, host_name) = answer(Kind::Identity, &unfit.encode().unwrap(), true);
    assert_eq!((kind, &host_name[..]), (Kind::Failure, "clone-7\n"), "the rest is taken");
    assert_eq!(String::from_utf8_lossy(&why[1..]), "MAC address: error 19");
}

#[test]
fn a_command_can_follow_an_identity_but_none_that_failed() {
    let (good, bad) =
        (Identity::default(), Identity { macs: vec![([2; 6], [3; 6])], ..Identity::default() });
    for (identity, expected) in
        [(good, &[Kind::Done, Kind::Output, Kind::Status][..]), (bad, &[Kind::Failure])]
    {
        let (mut ours, its) = UnixStream::pair().unwrap();
        // The other end is the agent's alone.
        let start = |its: UnixStream| {
            Command::new(AGENT).arg("--connection").stdin(OwnedFd::from(its)).spawn().unwrap()
        };
        let mut agent = start(its);
        let mut request = HELLO.to_vec();
        put(&mut request, Kind::Identity, &identity.encode().unwrap());
        let exec = Exec { args: vec![b"/bin/echo".into(), b"hi".into()], ..Exec::default() };
        put(&mut request, Kind::Exec, &exec.encode().unwrap());
        ours.write_all(&request).unwrap();
        let (mut inbound, mut kinds) = (Inbound::default(), Vec::new());
        loop {
            while let Some((kind, _)) = inbound.next().unwrap() {
                kinds.push(kind);
            }
            match ours.read(inbound.room()) {
                Ok(len @ 1..) => inbound.add(len),
                _ => break,
            }
        }
        assert_eq!(kinds, expected);
        assert!(agent.wait().unwrap().success());
    }
}
