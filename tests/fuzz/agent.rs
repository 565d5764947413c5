//! What comes out of a guest's agent, or arrives there, and archives that a guest sends.

use std::io::{Read, Write};

use agent_wire::{Exec, HELLO, Identity, Inbound, Kind, MAX_LEN, put};
use archive::{Entry, FILE, FOLDER, LINK, Reader};

use crate::input::Input;

/// Frames in pieces whose lengths are the input's, too; requests that are read are the same when they are written.
pub fn frames(data: &[u8]) {
    let mut input = Input(data);
    let mut inbound = Inbound::default();
    while let Some(piece) =
        input.u16().and_then(|len| input.bytes(usize::from(len).min(input.0.len())))
    {
        let room = inbound.room();
        assert!(!room.is_empty(), "there is room for the longest frame");
        let len = piece.len().min(room.len());
        room[..len].copy_from_slice(&piece[..len]);
        inbound.add(len);
        loop {
            match inbound.next() {
                Err(_) => return,
                Ok(None) => break,
                Ok(Some((kind, payload))) => request(kind, payload),
            }
        }
    }
}

fn request(kind: Kind, payload: &[u8]) {
    assert!(payload.len() <= MAX_LEN);
    if let Some(exec) = Exec::decode(payload).filter(|_| kind == Kind::Exec) {
        assert_eq!(exec.encode().and_then(|again| Exec::decode(&again)), Some(exec));
    }
    if let Some(identity) = Identity::decode(payload).filter(|_| kind == Kind::Identity) {
        assert_eq!(identity.encode().and_then(|again| Identity::decode(&again)), Some(identity));
    }
}

pub fn conversations() -> Vec<Vec<u8>> {
    let exec = Exec {
        args: vec![b"sh".into(), b"-c".into()],
        env: vec![b"A=b".into()],
        folder: Some(b"/tmp".into()),
        user: Some(b"nobody:0".into()),
        terminal: Some((24, 80)),
    };
    let identity = Identity {
        host_name: Some(b"clone".into()),
        machine_id: Some(vec![b'0'; 32]),
        seed: Some(vec![1; 32]),
        macs: vec![([1; 6], [2; 6])],
        time_ns: Some(1),
    };
    let exec = (Kind::Exec, exec.encode().unwrap_or_default());
    let identity = (Kind::Identity, identity.encode().unwrap_or_default());
    let status = (Kind::Status, vec![0, 7]);
    let frames = [exec, identity, (Kind::Output, vec![7; 100]), status];
    let seed = |(kind, payload): (Kind, Vec<u8>)| {
        let mut bytes = HELLO.to_vec();
        put(&mut bytes, kind, &payload);
        let mut seed = (bytes.len() as u16).to_le_bytes().to_vec();
        seed.extend(bytes);
        seed
    };
    frames.into_iter().map(seed).collect()
}

/// Contents are never more than the archive has.
pub fn archive(data: &[u8]) {
    let mut reader = Reader::new(data);
    let mut bytes = Vec::new();
    while let Ok(Some(entry)) = reader.next_entry() {
        assert!(entry.name.len() <= data.len() && entry.link.len() <= data.len());
        if reader.read_to_end(&mut bytes).is_err() {
            return;
        }
    }
    assert!(bytes.len() <= data.len());
}

pub fn archives() -> Vec<Vec<u8>> {
    let mut bytes = Vec::new();
    let contents = b"contents";
    for (kind, name) in [(FOLDER, "d".into()), (FILE, "d/file".into()), (LINK, "n".repeat(150))] {
        let size = if kind == FILE { contents.len() as u64 } else { 0 };
        let name = name.into_bytes();
        let entry = Entry {
            kind,
            link: name.clone(),
            name,
            mode: 0o644,
            mtime: 1,
            size,
            ..Entry::default()
        };
        // Writing to a vector cannot fail.
        let _ = archive::write_header(&mut bytes, &entry);
        let _ = bytes.write_all(&contents[..size as usize]);
        let _ = archive::pad(&mut bytes, size);
    }
    let _ = archive::write_end(&mut bytes);
    let record = b"18 path=some/name\n13 size=1000\n";
    let pax = Entry { kind: b'x', size: record.len() as u64, ..Entry::default() };
    let mut extended = Vec::new();
    let _ = archive::write_header(&mut extended, &pax);
    extended.extend(record);
    let _ = archive::pad(&mut extended, pax.size);
    extended.extend(&bytes);
    vec![bytes, extended]
}
