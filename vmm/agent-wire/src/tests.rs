use alloc::vec;

use proptest::prelude::*;

use super::*;

fn exec() -> Exec {
    Exec {
        args: vec![b"sh".into(), b"".into(), b"\xff".into()],
        env: vec![b"A=b".into()],
        folder: Some(b"/".into()),
        user: Some(b"1:2".into()),
        terminal: Some((24, 80)),
    }
}

fn identity() -> Identity {
    Identity {
        host_name: Some(b"clone".into()),
        machine_id: Some(vec![b'a'; 32]),
        seed: Some(vec![7; 32]),
        macs: vec![([2, 0, 0, 0, 0, 0], [2, 0, 0, 0, 0, 1])],
        time_ns: Some(u64::MAX),
    }
}

#[test]
fn requests_are_read_as_they_were_written() {
    for exec in [Exec::default(), exec()] {
        assert_eq!(Exec::decode(&exec.encode().unwrap()), Some(exec));
    }
    for identity in [Identity::default(), identity()] {
        assert_eq!(Identity::decode(&identity.encode().unwrap()), Some(identity));
    }
    let long = Exec { args: vec![vec![b'x'; MAX_LEN]], ..Exec::default() };
    assert_eq!(long.encode(), None);
}

#[test]
fn a_request_that_is_cut_off_or_has_what_nobody_knows_is_none() {
    let whole = exec().encode().unwrap();
    let ends: Vec<_> =
        (0..whole.len()).filter(|len| Exec::decode(&whole[..*len]).is_some()).collect();
    // Where a field ends.
    assert_eq!(ends, [0, 7, 12, 18, 26, 32, 40]);
    assert_eq!(Exec::decode(&[9, 0, 0, 0, 0]), None);
    assert_eq!(Exec::decode(&[1, 1, 0, 0, 0, 0]), None, "a zero byte");
    assert_eq!(Identity::decode(&[2, 1, 0, 0, 0, b'a']), None, "a short machine-id");
    assert_eq!(Identity::decode(&[4, 1, 0, 0, 0, 2]), None, "a short address");
}

#[test]
fn what_is_not_the_protocol_is_found_at_once() {
    let error = |bytes: &[u8]| {
        let mut inbound = Inbound::default();
        inbound.room()[..bytes.len()].copy_from_slice(bytes);
        inbound.add(bytes.len());
        inbound.next().unwrap_err()
    };
    assert_eq!(error(b"SSH"), Malformed::Stranger);
    assert_eq!(error(b"tinyvmm-agent 2"), Malformed::Version);
    let after_hello = |frame: &[u8]| error(&[HELLO, frame].concat());
    assert_eq!(after_hello(&[7, 0, 0, 0, 0]), Malformed::Kind);
    assert_eq!(after_hello(&[1, 1, 0, 2, 0]), Malformed::Length);
    assert_eq!(after_hello(&[1, 255, 255, 255, 255]), Malformed::Length);
}

proptest! {
    /// Frames come out as they were put in, in whatever pieces they arrive, the longest ones included.
    #[test]
    fn frames_may_come_in_any_pieces(
        lens in prop::collection::vec(prop_oneof![0..100usize, MAX_LEN - 2..=MAX_LEN], 1..5),
        pieces in prop::collection::vec(1..200_000usize, 1..9),
    ) {
        let mut sent = HELLO.to_vec();
        for (index, len) in lens.iter().enumerate() {
            put(&mut sent, Kind::ALL[index], &vec![index as u8; *len]);
        }
        let mut inbound = Inbound::default();
        let (mut rest, mut found) = (&sent[..], vec![]);
        for piece in pieces.iter().cycle() {
            let room = inbound.room();
            let len = (*piece).min(room.len()).min(rest.len());
            room[..len].copy_from_slice(&rest[..len]);
            inbound.add(len);
            rest = &rest[len..];
            while let Some((kind, payload)) = inbound.next().unwrap() {
                let index = found.len();
                prop_assert_eq!(kind, Kind::ALL[index]);
                prop_assert!(payload.iter().all(|byte| *byte == index as u8));
                found.push(payload.len());
            }
            if rest.is_empty() {
                break;
            }
        }
        prop_assert_eq!(found, lens);
    }
}
