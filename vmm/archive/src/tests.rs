use std::process::{Command, Stdio};

use super::*;

fn entries() -> Vec<(Entry, Vec<u8>)> {
    let entry = |kind, name: &[u8], link: &[u8], contents: &[u8]| {
        let (name, link) = (name.into(), link.into());
        let size = contents.len() as u64;
        let (mode, mtime, owner) = (0o640, 1_700_000_000, (1000, 50));
        let entry = Entry { kind, name, link, mode, mtime, size, owner, ..Entry::default() };
        (entry, contents.to_vec())
    };
    let long = [b'n'; 300];
    vec![
        entry(FOLDER, b"d", b"", b""),
        entry(FILE, b"d/empty", b"", b""),
        entry(FILE, b"d/\xff", b"", &[7; 1000]),
        entry(FILE, &[b"d/", &long[..200]].concat(), b"", b"long"),
        entry(LINK, b"d/link", &long, b""),
        entry(HARD_LINK, b"d/hard", b"d/empty", b""),
    ]
}

fn archive() -> Vec<u8> {
    let mut bytes = Vec::new();
    for (entry, contents) in entries() {
        write_header(&mut bytes, &entry).unwrap();
        bytes.extend(&contents);
        pad(&mut bytes, entry.size).unwrap();
    }
    write_end(&mut bytes).unwrap();
    bytes
}

fn read(bytes: &[u8]) -> Result<Vec<(Entry, Vec<u8>)>> {
    let mut reader = Reader::new(bytes);
    let mut all = Vec::new();
    while let Some(entry) = reader.next_entry()? {
        let mut contents = Vec::new();
        reader.read_to_end(&mut contents)?;
        all.push((entry, contents));
    }
    Ok(all)
}

#[test]
fn what_is_written_is_read() {
    assert_eq!(read(&archive()).unwrap(), entries());
    // Contents that nobody reads are skipped.
    let archive = archive();
    let mut reader = Reader::new(&archive[..]);
    let mut names = Vec::new();
    while let Some(entry) = reader.next_entry().unwrap() {
        names.push(entry.name);
    }
    assert_eq!(names, entries().into_iter().map(|(entry, _)| entry.name).collect::<Vec<_>>());
    let large = Entry { kind: FILE, size: 1 << 40, ..Entry::default() };
    assert_eq!(parse(&header(&large)).unwrap().size, 1 << 40);
}

#[test]
fn other_tars_write_what_is_read() {
    let dir = std::env::temp_dir().join(format!("tinyvmm-tar-{}", std::process::id()));
    let deep = dir.join("a".repeat(90)).join("b".repeat(90));
    std::fs::create_dir_all(&deep).unwrap();
    std::fs::write(deep.join("file"), "contents").unwrap();
    std::os::unix::fs::symlink("c".repeat(200), deep.join("link")).unwrap();
    for format in ["gnu", "pax", "ustar"] {
        let mut tar = Command::new("tar");
        // The link is too long for the oldest.
        let left_out = if format == "ustar" { "--exclude=link" } else { "--exclude=nothing" };
        tar.arg(format!("--format={format}")).args([left_out, "-c", "-C"]).arg(&dir).arg(".");
        let all = read(&tar.stderr(Stdio::null()).output().unwrap().stdout).unwrap();
        let find = |end: &[u8]| all.iter().find(|(entry, _)| entry.name.ends_with(end));
        assert_eq!(find(b"/file").unwrap().1, b"contents", "{format}");
        let name = format!("./{}/{}/file", "a".repeat(90), "b".repeat(90));
        assert!(find(name.as_bytes()).is_some(), "{format}");
        if format != "ustar" {
            assert_eq!(find(b"/link").unwrap().0.link, "c".repeat(200).as_bytes(), "{format}");
        }
    }
    std::fs::remove_dir_all(&dir).unwrap();
}

/// An entry with what `records` say of it in an extended header.
fn extended(records: &[(&str, &[u8])]) -> Vec<u8> {
    let line = |(key, value): &(&str, &[u8])| {
        let rest = [b" ", key.as_bytes(), b"=", value, b"\n"].concat();
        let digits = if rest.len() + 2 < 100 { 2 } else { 3 };
        [(rest.len() + digits).to_string().as_bytes(), &rest].concat()
    };
    let records = records.iter().flat_map(line).collect::<Vec<_>>();
    let size = records.len() as u64;
    let mut bytes = header(&Entry { kind: b'x', size, ..Entry::default() }).to_vec();
    bytes.extend(&records);
    pad(&mut bytes, size).unwrap();
    bytes.extend(header(&Entry { kind: CHARACTERS, name: b"n".into(), ..Entry::default() }));
    bytes
}

#[test]
fn owners_devices_and_attributes_are_read() {
    let mut bytes = extended(&[("uid", b"4000000000"), ("SCHILY.xattr.user.a", b"x=\ny")]);
    let at = bytes.len() - BLOCK;
    let mut put = |from: usize, text: &[u8]| bytes[at + from..][..text.len()].copy_from_slice(text);
    put(116, b"0000031\0");
    put(329, b"0000001\0");
    put(337, b"0000003\0");
    put(148, &[b' '; 8]);
    let sum: u32 = bytes[at..].iter().map(|byte| u32::from(*byte)).sum();
    bytes[at + 148..at + 156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    bytes.extend([0; 2 * BLOCK]);
    let [(entry, _)] = &read(&bytes).unwrap()[..] else { panic!() };
    assert_eq!((entry.owner, entry.device), ((4_000_000_000, 25), (1, 3)));
    assert_eq!(entry.attributes, [(b"user.a".to_vec(), b"x=\ny".to_vec())]);
    let refused = |key, value| format!("{:#}", read(&extended(&[(key, value)])).unwrap_err());
    assert!(refused("GNU.sparse.major", b"1").contains("a sparse file"));
    assert!(refused("gid", b"4294967296").contains("out of range"));
    // Of many headers before an entry no more is kept than of one.
    let one = &extended(&[("SCHILY.xattr.user.a", &[b'v'; 300])])[..2 * BLOCK];
    let many = [one.repeat(1000), extended(&[])].concat();
    let mut reader = Reader::new(&many[..]);
    assert!(reader.next_entry().unwrap().unwrap().attributes.is_empty());
}

#[test]
fn contents_can_be_skipped_without_reading_them() {
    let archive = archive();
    let mut reader = Reader::new(io::Cursor::new(&archive));
    let mut found = Vec::new();
    while let Some(entry) = reader.next_entry().unwrap() {
        let at = reader.skip().unwrap() as usize;
        found.push(archive[at..at + entry.size as usize].to_vec());
    }
    assert_eq!(found, entries().into_iter().map(|(_, contents)| contents).collect::<Vec<_>>());
}

#[test]
fn damage_is_found_or_harmless() {
    let whole = archive();
    for cut in (0..whole.len() - 2 * BLOCK).step_by(97) {
        read(&whole[..cut]).unwrap_err();
    }
    // Lengths that nobody has room for.
    for kind in [b'L', b'K', b'x'] {
        let long = Entry { kind, size: 1 << 40, ..Entry::default() };
        let error = read(&[&header(&long)[..], &whole].concat()).unwrap_err();
        assert!(error.to_string().contains("too long"), "{error}");
    }
    // Where a sum shows whether it is whole, it may end before its end.
    let end = whole.len() - 2 * BLOCK;
    let mut count = 0;
    let mut reader = Reader::of_summed(&whole[..end]);
    while reader.next_entry().unwrap().is_some() {
        count += 1;
    }
    assert_eq!(count, entries().len());
    let mut cut = Reader::of_summed(&whole[..end - 1]);
    let refused = (0..=count).find_map(|_| cut.next_entry().err());
    assert!(refused.unwrap().to_string().contains("cut off"));
    let mut flipped = whole.clone();
    flipped[3] ^= 1;
    read(&flipped).unwrap_err();
}
