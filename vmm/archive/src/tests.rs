use std::process::{Command, Stdio};

use super::*;

fn entries() -> Vec<(Entry, Vec<u8>)> {
    let entry = |kind, name: &[u8], link: &[u8], contents: &[u8]| {
        let (name, link) = (name.into(), link.into());
        let size = contents.len() as u64;
        (Entry { kind, name, link, mode: 0o640, mtime: 1_700_000_000, size }, contents.to_vec())
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
    let mut flipped = whole.clone();
    flipped[3] ^= 1;
    read(&flipped).unwrap_err();
}
