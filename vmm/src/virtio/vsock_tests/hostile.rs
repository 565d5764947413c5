//! Packets that no driver sends.

use proptest::prelude::*;

use super::*;

#[test]
fn wrong_addresses_types_operations_and_states_are_refused() {
    let mut world = world();
    let (mut stream, port) = world.connects(1);
    let other = packet(RW, 1, port);
    // Another guest's address is nobody's: no answer, and no effect.
    for src_cid in [0, 2, u64::from(CID) + 1, u64::from(CID) | 1 << 32, u64::MAX] {
        world.sends_with(&Packet { src_cid, op: RST, ..other }, &[]);
    }
    for dst_cid in [0, 1, 3, HOST_CID | 1 << 32] {
        world.sends_with(&Packet { dst_cid, ..other }, &[]);
        let (refusal, _) = world.receives();
        assert_eq!((refusal.op, refusal.src_cid, refusal.dst_port), (RST, dst_cid, 1));
    }
    for kind in [0, 2, 3, 0xffff] {
        world.sends_with(&Packet { kind, ..other }, &[]);
        let (refusal, _) = world.receives();
        assert_eq!((refusal.op, refusal.kind, refusal.src_port), (RST, kind, port));
    }
    // All of that has left the connection alone.
    world.sends_data(1, port, b"ok");
    let mut ok = [0; 2];
    stream.read_exact(&mut ok).unwrap();
    world.is_quiet();
    // To nobody: every operation but REQUEST and RST.
    for op in [0, RESPONSE, SHUTDOWN, RW, CREDIT_UPDATE, CREDIT_REQUEST, 8, 0xffff] {
        world.sends(op, 7, 7);
        world.receives_op(RST, 7, 7);
    }
    world.sends(RST, 7, 7);
    world.is_quiet();
}

#[test]
fn an_operation_that_its_state_has_not_ends_the_connection() {
    let mut world = world();
    for op in [0, REQUEST, RESPONSE, 8, 0xffff] {
        let (mut stream, port) = world.connects(1);
        world.sends(op, 1, port);
        world.receives_op(RST, 1, port);
        is_over(&mut stream);
    }
    for op in [REQUEST, RW, SHUTDOWN, CREDIT_UPDATE, 0] {
        let mut stream = world.asks("CONNECT 1\n");
        let (request, _) = world.receives();
        world.sends(op, 1, request.src_port);
        world.receives_op(RST, 1, request.src_port);
        is_over(&mut stream);
    }
    for op in [REQUEST, RESPONSE, RW, SHUTDOWN] {
        world.sends(REQUEST, 99, 52);
        world.is_called();
        world.sends(op, 99, 52);
        world.receives_op(RST, 99, 52);
    }
    world.is_quiet();
}

#[test]
fn data_beyond_the_chain_the_window_or_the_end_ends_the_connection() {
    let too_much: [fn(&mut World, u32); 4] = [
        |world, port| world.sends_with(&Packet { len: 5, ..packet(RW, 1, port) }, b"four"),
        |world, port| world.sends_with(&Packet { len: u32::MAX, ..packet(RW, 1, port) }, b"four"),
        |world, port| world.sends_data(1, port, &bytes((64 << 10) + 1)),
        |world, port| {
            world.sends_with(&Packet { flags: NO_SEND, ..packet(SHUTDOWN, 1, port) }, &[]);
            world.sends_data(1, port, b"four");
        },
    ];
    for send in too_much {
        let mut world = world();
        let (mut stream, port) = world.connects(1);
        send(&mut world, port);
        world.receives_op(RST, 1, port);
        is_over(&mut stream);
    }
    // What is behind the data is nothing.
    let mut world = world();
    let (mut stream, port) = world.connects(1);
    world.sends_with(&Packet { len: 2, ..packet(RW, 1, port) }, b"fo..");
    world.sends_with(&Packet { len: 0, ..packet(RW, 1, port) }, b"four");
    world.sends_data(1, port, b"ur");
    let mut four = [0; 4];
    stream.read_exact(&mut four).unwrap();
    assert_eq!(&four, b"four");
}

#[test]
fn a_header_that_is_not_whole_and_buffers_without_room_for_one_are_nothing() {
    let mut world = bare_world();
    for len in [1, 43] {
        world.driver.add(SENDS, &[(OUT, len, false)]);
        world.driver.kick(SENDS);
        assert_eq!(world.driver.wait_used(SENDS).1, 0);
    }
    for len in [1, 44] {
        world.driver.add(RECEIVES, &[(DATA, len, true)]);
        world.driver.kick(RECEIVES);
    }
    world.sends(RW, 8, 9);
    for _ in 0..2 {
        assert_eq!(world.driver.wait_used(RECEIVES).1, 0);
    }
    world.offers();
    world.receives_op(RST, 8, 9);
}

#[test]
fn lies_about_credit_harm_the_liar_alone() {
    let mut world = world();
    let (mut stream, port) = world.connects(1);
    // More has left the guest's room than was sent there.
    for fwd_cnt in [1, 1 << 31, u32::MAX - ROOM] {
        let lie = Packet { fwd_cnt, ..packet(CREDIT_UPDATE, 1, port) };
        world.sends_with(&lie, &[]);
        stream.write_all(b"x").unwrap();
        world.is_quiet();
    }
    world.sends_with(&Packet { buf_alloc: u32::MAX, ..packet(CREDIT_UPDATE, 1, port) }, &[]);
    let mut received = 0;
    while received < 3 {
        received += world.receives().1.len();
    }
    world.sends_data(1, port, b"ok");
    let mut ok = [0; 2];
    stream.read_exact(&mut ok).unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    /// Whatever packets come, the device neither panics nor hangs, and the next driver has connections.
    #[test]
    fn any_packets_are_survived(
        packets in prop::collection::vec(
            (0u16..10, 0u32..3, 0u32..3, any::<u32>(), any::<u32>(), 0u32..4, 0usize..3000, any::<bool>()),
            1..60,
        ),
    ) {
        let mut world = world();
        let mut streams = Vec::new();
        for (op, port, to, alloc, forwarded, flags, len, lies) in packets {
            let to = if to == 0 { 1 << 30 } else { to };
            let header = Packet {
                buf_alloc: alloc,
                fwd_cnt: forwarded,
                flags,
                len: if lies { alloc } else { len as u32 },
                ..packet(op, port, to)
            };
            match op {
                0 => streams.push(world.asks(&format!("CONNECT {port}\nand more"))),
                9 => drop(streams.pop()),
                _ => world.sends_with(&header, &bytes(len)),
            }
            while world.driver.take_used(RECEIVES).is_some() {
                world.offer(world.next);
                world.next += 1;
            }
        }
        world.driver.init();
        world.offers();
        drop(streams);
        // What was in the listening socket's queue comes first, and is refused.
        let mut stream = world.asks("CONNECT 1000\n");
        loop {
            let (request, _) = world.receives();
            if request.op == REQUEST && request.dst_port == 1000 {
                world.sends(RESPONSE, 1000, request.src_port);
                break;
            }
        }
        let mut line = [0; 3];
        stream.read_exact(&mut line).unwrap();
        prop_assert_eq!(&line, b"OK ");
    }
}
