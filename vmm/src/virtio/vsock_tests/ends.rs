//! How connections end: each side, in either direction, with what is on its way.

use super::*;

/// SHUTDOWN of the guest's.
fn shutdown(flags: u32, port: u32, to: u32) -> Packet {
    Packet { flags, ..packet(SHUTDOWN, port, to) }
}

#[test]
fn the_host_sends_no_more_and_the_guest_does() {
    let mut world = world();
    let (mut stream, port) = world.connects(1);
    stream.write_all(b"last").unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    assert_eq!(world.receives().1, b"last");
    assert_eq!(world.receives_op(SHUTDOWN, 1, port).flags, NO_SEND);
    world.sends_data(1, port, b"answer");
    let mut answer = [0; 6];
    stream.read_exact(&mut answer).unwrap();
    // Closed, it receives no more either.
    drop(stream);
    assert_eq!(world.receives_op(SHUTDOWN, 1, port).flags, NEITHER);
    // The driver's last word on it, and a packet that was on its way.
    world.sends(RST, 1, port);
    world.is_quiet();
    world.sends_data(1, port, b"late");
    world.receives_op(RST, 1, port);
}

#[test]
fn the_guest_sends_no_more_and_the_host_does() {
    let mut world = world();
    let (mut stream, port) = world.connects(1);
    world.sends_data(1, port, b"last");
    world.sends_with(&shutdown(NO_SEND, 1, port), &[]);
    let mut all = Vec::new();
    stream.read_to_end(&mut all).unwrap();
    assert_eq!(all, b"last");
    stream.write_all(b"answer").unwrap();
    assert_eq!(world.receives().1, b"answer");
    world.sends_with(&shutdown(NO_RECEIVE, 1, port), &[]);
    world.receives_op(RST, 1, port);
    assert!(stream.write_all(b"more").is_err());
    world.is_quiet();
}

#[test]
fn the_guest_receives_no_more_and_sends() {
    let mut world = world();
    let (mut stream, port) = world.connects(1);
    world.sends_with(&shutdown(NO_RECEIVE, 1, port), &[]);
    world.driver.paused(|_| {});
    assert_eq!(stream.write_all(b"x").unwrap_err().kind(), std::io::ErrorKind::BrokenPipe);
    world.sends_data(1, port, b"on");
    let mut on = [0; 2];
    stream.read_exact(&mut on).unwrap();
    world.is_quiet();
}

#[test]
fn what_the_guest_has_sent_arrives_before_its_end() {
    let mut world = world();
    let (mut stream, port) = world.connects(1);
    let all = bytes(4 << 20);
    let (mut sent, mut forwarded) = (0, 0);
    while sent - forwarded < 64 << 10 {
        world.sends_data(1, port, &all[sent..sent + 4096]);
        sent += 4096;
        world.driver.paused(|_| {});
        if world.driver.used_index(RECEIVES) != world.next as u16 {
            forwarded = world.receives_op(CREDIT_UPDATE, 1, port).fwd_cnt as usize;
        }
    }
    world.sends_with(&shutdown(NEITHER, 1, port), &[]);
    world.is_quiet();
    let mut received = Vec::new();
    stream.read_to_end(&mut received).unwrap();
    assert!(received == all[..sent], "{} of {sent} bytes", received.len());
    while world.receives().0.op != RST {}
}

#[test]
fn a_program_that_dies_ends_its_connection_whatever_the_guest_does() {
    let mut world = world();
    // With nothing on its way.
    let (stream, port) = world.connects(1);
    drop(stream);
    assert_eq!(world.receives_op(SHUTDOWN, 1, port).flags, NO_SEND);
    assert_eq!(world.receives_op(SHUTDOWN, 1, port).flags, NEITHER);
    // With data that it has not read: the next one finds nobody.
    let (stream, port) = world.connects(2);
    world.sends_data(2, port, b"unread");
    drop(stream);
    world.receives_op(RST, 2, port);
    // Before the guest has answered.
    let stream = world.asks("CONNECT 3\n");
    let (request, _) = world.receives();
    drop(stream);
    world.receives_op(RST, 3, request.src_port);
    // While the guest sends: no signal ends this process, and what the program has sent arrives.
    let (mut stream, port) = world.connects(4);
    let alloc = |buf_alloc| Packet { buf_alloc, ..packet(CREDIT_UPDATE, 4, port) };
    world.sends_with(&alloc(0), &[]);
    stream.write_all(b"will").unwrap();
    world.driver.paused(|_| {});
    drop(stream);
    world.sends_with(&Packet { len: 4, buf_alloc: 0, ..packet(RW, 4, port) }, b"dead");
    assert_eq!(world.receives_op(SHUTDOWN, 4, port).flags, NO_RECEIVE);
    world.sends_with(&alloc(ROOM), &[]);
    assert_eq!(world.receives().1, b"will");
    assert_eq!(world.receives_op(SHUTDOWN, 4, port).flags, NEITHER);
}

#[test]
fn a_guest_that_gives_up_before_the_answer_hears_no_more() {
    let mut world = world();
    world.sends(REQUEST, 99, 52);
    let (_, tag) = world.is_called();
    world.sends(RST, 99, 52);
    let (mut ours, its) = UnixStream::pair().unwrap();
    world.answers(tag, Some(&its));
    drop(its);
    is_over(&mut ours);
    world.is_quiet();
}

#[test]
fn a_dialer_that_is_gone_refuses_all_calls() {
    let mut world = world();
    let mut stream = world.calls(98, 52);
    world.sends(REQUEST, 99, 52);
    world.dialer.shutdown(Shutdown::Both).unwrap();
    world.receives_op(RST, 99, 52);
    world.sends(REQUEST, 100, 52);
    world.receives_op(RST, 100, 52);
    // All else works.
    world.sends_data(98, 52, b"here");
    let mut here = [0; 4];
    stream.read_exact(&mut here).unwrap();
    world.connects(1);
}
