//! What answers in the guest is no agent, or lies.

use agent_wire::{HELLO, Kind, MAX_LEN, put};

use super::*;

/// A machine whose guest sends `bytes` on each connection, and reads on until the other side leaves.
pub fn answers(bytes: Vec<u8>) -> Machine {
    Machine::with(move |mut stream, _| {
        let bytes = bytes.clone();
        thread::spawn(move || {
            // Who leaves early does not read all of it.
            let _ = stream.write_all(&bytes);
            while let Ok(1..) = stream.read(&mut [0; 4096]) {}
        });
    })
}

/// The hello, then frames.
pub fn frames(frames: &[(Kind, &[u8])]) -> Vec<u8> {
    let mut bytes = HELLO.to_vec();
    frames.iter().for_each(|(kind, payload)| put(&mut bytes, *kind, payload));
    bytes
}

#[test]
fn what_is_no_agent_or_another_version_is_said() {
    let refuse = |bytes: &[u8], why: &str| {
        answers(bytes.to_vec()).exec(&["vm", "true"]).run().refuses(125, &["vm: ", why]);
    };
    refuse(b"SSH-2.0-OpenSSH\r\n", "no agent of tinyvmm's");
    refuse(b"tinyvmm-agent 2\n", "another version");
    refuse(&[HELLO, &[0; 64][..]].concat(), "no agent of tinyvmm's");
    refuse(&[HELLO, &[64, 255, 255, 255, 255][..]].concat(), "no agent of tinyvmm's");
    refuse(&frames(&[(Kind::Exec, b"")]), "no agent of tinyvmm's");
    refuse(&frames(&[(Kind::Done, b"")]), "no agent of tinyvmm's");
    refuse(&frames(&[(Kind::Taken, b"123")]), "no agent of tinyvmm's");
    refuse(&frames(&[(Kind::Status, &[2, 0])]), "no agent of tinyvmm's");
    refuse(&frames(&[(Kind::Status, b"")]), "no agent of tinyvmm's");
}

#[test]
fn a_guest_without_an_agent_is_one_line_with_the_remedy() {
    let closes = Machine::with(|stream, _| drop(stream));
    closes.exec(&["vm", "true"]).run().refuses(125, &["vm: the connection to the guest is lost"]);
    let machine = Machine::new();
    let socket = machine.runtime.path("tinyvmm/vm/vsock");
    fs::remove_file(&socket).unwrap();
    machine.exec(&["vm", "true"]).run().refuses(125, &["vm: the machine has no vsock device"]);
    // A port where nobody listens: the device closes the connection.
    let listener = UnixListener::bind(&socket).unwrap();
    thread::spawn(move || {
        for stream in listener.incoming() {
            stream.unwrap().read_exact(&mut [0; 13]).unwrap();
        }
    });
    machine
        .exec(&["vm", "true"])
        .run()
        .refuses(125, &["vm: no agent answers", "guest-images/build agent"]);
}

#[test]
fn an_agent_that_lies_harms_nobody() {
    // More input is taken than was sent: no more is under way than there is room for.
    let taken = frames(&[(Kind::Taken, &[255; 4][..]); 100]);
    let machine = answers(taken);
    let running =
        machine.exec(&["-i", "vm", "cat"]).stdin(File::open("/dev/zero").unwrap()).start();
    let growth = running.until(|running| running.proc("fdinfo/0").exists()).rss_kib();
    assert!(growth < 4096, "{growth} KiB");
    // A reason that would control the terminal, without an end.
    let mut reason = vec![0x1b; MAX_LEN];
    reason[0] = 77;
    let outcome =
        answers(frames(&[(Kind::Failure, &reason)])).exec(&["vm", "true"]).run().exits(77);
    assert!(outcome.stderr.len() < 500 && !outcome.stderr.contains('\x1b'), "{:?}", outcome.stderr);
    answers(frames(&[(Kind::Failure, b"")])).exec(&["vm", "true"]).run().exits(125);
    answers(frames(&[(Kind::Status, &[1, 255])])).exec(&["vm", "true"]).run().exits(127);
    // Output after the end is none.
    let late =
        frames(&[(Kind::Output, b"early"), (Kind::Status, &[0, 4]), (Kind::Output, b"late")]);
    let outcome = answers(late).exec(&["vm", "true"]).run().exits(4).silently();
    assert_eq!(outcome.stdout, b"early");
}

#[test]
fn an_agent_that_floods_fills_no_memory() {
    let machine = Machine::with(|mut stream, _| {
        thread::spawn(move || {
            let mut bytes = frames(&[]);
            while stream.write_all(&bytes).is_ok() {
                bytes.clear();
                put(&mut bytes, Kind::Output, &[b'x'; MAX_LEN]);
            }
        });
    });
    let (reader, writer) = std::io::pipe().unwrap();
    let running = machine.exec(&["vm", "true"]).stdout(writer).start();
    let mut reader = reader;
    let mut seen = 0;
    while seen < 64 << 20 {
        seen += reader.read(&mut [0; 65536]).unwrap();
    }
    assert!(running.rss_kib() < 4096, "{} KiB", running.rss_kib());
    drop(reader);
    running.wait().exits(141);
}
