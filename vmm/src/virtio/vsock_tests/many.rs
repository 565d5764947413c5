//! More connections than there can be.

use super::*;

/// Most connections of a device.
const MOST: usize = 1023;

/// Whether this process may have `count` files open; the other ends of connections are its own, too.
fn has_room_for(count: usize) -> bool {
    let limits = std::fs::read_to_string("/proc/self/limits").unwrap();
    let line = limits.lines().find(|line| line.starts_with("Max open files")).unwrap();
    let most = line.split_whitespace().nth(3).unwrap();
    let fits = most == "unlimited" || most.parse::<usize>().unwrap() > count + 500;
    if !fits {
        eprintln!("SKIPPED: {most} open files are too few: ulimit -n");
    }
    fits
}

#[test]
fn a_guest_has_1023_connections_and_then_refusals() {
    if !has_room_for(MOST) {
        return;
    }
    let mut world = world();
    let (_ours, its) = UnixStream::pair().unwrap();
    for port in 0..MOST as u32 {
        world.sends(REQUEST, port, 52);
        let (_, tag) = world.is_called();
        world.answers(tag, Some(&its));
        world.receives_op(RESPONSE, port, 52);
    }
    // Many at a time: each time the device looks at all of its descriptors.
    let all: Vec<u32> = (MOST as u32..65_535).collect();
    for ports in all.chunks(32) {
        for (place, port) in (OUT..).step_by(64).zip(ports) {
            world.driver.write(place, &packet(REQUEST, *port, 52).bytes());
            world.driver.add(SENDS, &[(place, HEADER as u32, false)]);
        }
        world.driver.kick(SENDS);
        for port in ports {
            world.driver.wait_used(SENDS);
            world.receives_op(RST, *port, 52);
        }
    }
    // One that ends makes room for another.
    world.sends(RST, 7, 52);
    world.sends(REQUEST, 70_000, 52);
    let (_, tag) = world.is_called();
    world.answers(tag, Some(&its));
    world.receives_op(RESPONSE, 70_000, 52);
}

#[test]
fn refusals_that_the_guest_does_not_take_hold_up_its_own_packets() {
    let mut world = bare_world();
    // As many as are kept.
    for _ in 0..256 {
        world.sends(RW, 7, 7);
    }
    world.driver.add(SENDS, &[(OUT, HEADER as u32, false)]);
    world.driver.kick(SENDS);
    for _ in 0..20 {
        world.driver.paused(|driver| assert_eq!(driver.take_used(SENDS), None));
    }
    world.offers();
    for _ in 0..257 {
        world.receives_op(RST, 7, 7);
    }
    world.driver.wait_used(SENDS);
}

#[test]
fn a_program_too_many_is_disconnected() {
    if !has_room_for(2 * MOST) {
        return;
    }
    let mut world = world();
    let mut waiting = Vec::new();
    for _ in 0..MOST {
        waiting.push(world.asks("CONN"));
        if waiting.len() % 64 == 0 {
            world.driver.paused(|_| {});
        }
    }
    is_over(&mut world.asks("CONNECT 1\n"));
    drop(waiting);
    world.connects(1);
}

/// Sends what a program of the host does not read, until there is no more room; returns whether the connection is reset.
fn fills(world: &mut World, port: u32) -> bool {
    const PIECE: u32 = 16 << 10;
    let (mut sent, mut forwarded) = (0, 0);
    while sent - forwarded <= (64 << 10) - PIECE {
        world.sends_data(port, 52, &[0; PIECE as usize]);
        sent += PIECE;
        world.sends(CREDIT_REQUEST, port, 52);
        world.driver.paused(|_| {});
        while world.driver.used_index(RECEIVES) != world.next as u16 {
            match world.receives().0 {
                Packet { op: CREDIT_UPDATE, fwd_cnt, .. } => forwarded = fwd_cnt,
                Packet { op: RST, .. } => return true,
                packet => panic!("{packet:?}"),
            }
        }
    }
    false
}

#[test]
fn what_programs_do_not_read_is_16_mib_in_all_at_most() {
    if !has_room_for(2 * MOST) {
        return;
    }
    let mut world = world();
    let mut programs = Vec::new();
    for port in 0..MOST as u32 {
        programs.push(world.calls(port, 52));
        if fills(&mut world, port) {
            break;
        }
    }
    // Each has a window, or a little less.
    assert!((256..342).contains(&programs.len()), "{}", programs.len());
}
