//! Images that are damaged, or that somebody has made to do harm.

use archive::{FILE, FOLDER, HARD_LINK, LINK};

use super::*;

#[test]
fn paths_and_links_do_not_lead_out() {
    for path in ["../x", "a/../../x", "/../x", "..", "a/.."] {
        let error = refused(&[&[(FILE, path, "x")]]);
        assert!(error.contains("a path with '..'"), "{error}");
        assert!(error.starts_with("layer sha256:"), "{error}");
    }
    for target in ["../etc/passwd", "/../x"] {
        assert!(refused(&[&[(HARD_LINK, "x", target)]]).contains("a path with '..'"));
    }
    for target in ["etc/shadow", "/etc/shadow", ""] {
        assert!(refused(&[&[(HARD_LINK, "x", target)]]).contains("is not there"), "{target}");
    }
    assert!(refused(&[&[(FOLDER, "d", ""), (HARD_LINK, "x", "d")]]).contains("to a folder"));
    // A symbolic link may lead anywhere; what follows it stays within the image.
    let out: &Entries = &[
        (LINK, "up", "../../../.."),
        (FILE, "up/x", "1"),
        (LINK, "abs", "/d"),
        (FILE, "abs/y", "2"),
    ];
    assert_eq!(files_of(&[out])["/x"], "100751 1000:50 1 1");
    assert_eq!(files_of(&[out])["/d/y"], "100751 1000:50 1 2");
    assert!(
        refused(&[&[(LINK, "a", "b"), (LINK, "b", "a"), (FILE, "a/x", "")]])
            .contains("too many symbolic")
    );
    assert!(refused(&[&[(FILE, "f", ""), (FILE, "f/x", "")]]).contains("is a file"));
    let whiteouts = [".wh.", ".wh..", ".wh...", "d/.wh..."];
    for name in whiteouts {
        let error = refused(&[&[(FOLDER, "d", ""), (FILE, name, "")]]);
        assert!(error.contains("a folder that it is in"), "{error}");
    }
}

#[test]
fn what_no_file_system_has_is_refused() {
    let long = "n".repeat(256);
    assert!(refused(&[&[(FILE, &long, "")]]).contains("more than 255 bytes"));
    assert!(refused(&[&[(LINK, "l", "")]]).contains("a symbolic link that cannot be"));
    assert!(refused(&[&[(FILE, &"d/".repeat(300), "")]]).contains("within each other"));
    assert!(refused(&[&[(LINK, "/", "x")]]).contains("the root is no folder"));
    assert!(refused(&[&[(b'S', "sparse", "")]]).contains("of the kind 'S'"));
    // Two that would be deeper by way of a link.
    let deep = "d/".repeat(200);
    let entries: &Entries =
        &[(FOLDER, &deep, ""), (LINK, "l", &deep), (FILE, &["l/", &deep].concat(), "")];
    assert!(refused(&[entries]).contains("within each other"));
}

#[test]
fn sums_and_sizes_decide() {
    let made = Layout::with_layers(&[gzip(&layer(&[(FILE, "a", "b")]))]);
    let image = made.open("").unwrap();
    let blob = made.folder.as_path().join("blobs/sha256").join(image.layers[0].digest.hex());
    let whole = std::fs::read(&blob).unwrap();
    // Damage is named as damage, whatever it makes of the layer.
    for at in 0..whole.len() {
        let mut damaged = whole.clone();
        damaged[at] ^= 0x10;
        std::fs::write(&blob, damaged).unwrap();
        let error = format!("{:#}", disk_of(&image).err().unwrap());
        assert!(error.contains("it is damaged or was changed") || at < 4, "at {at}: {error}");
    }
    std::fs::write(&blob, &whole[1..]).unwrap();
    let error = format!("{:#}", made.open("").err().unwrap());
    assert!(
        error.contains(&format!("has {} bytes instead of {}", whole.len() - 1, whole.len())),
        "{error}"
    );
    std::fs::remove_file(&blob).unwrap();
    assert!(format!("{:#}", made.open("").err().unwrap()).contains("it is not in the folder"));
    // A size in the archive that nothing follows.
    let mut cut = layer(&[(FILE, "a", "b")]);
    cut.truncate(512);
    let error =
        format!("{:#}", disk_of(&Layout::with_layers(&[cut]).open("").unwrap()).err().unwrap());
    assert!(error.contains("its contents: unexpected end of file"), "{error}");
}

#[test]
fn a_small_layer_that_unpacks_to_much_is_refused_where_the_limit_is() {
    let zeroes = gzip(&vec![0; 80 << 20]);
    let mut large = Vec::new();
    let size = 1 << 40;
    let (kind, name) = (FILE, b"large".to_vec());
    archive::write_header(&mut large, &Entry { kind, name, size, ..Entry::default() }).unwrap();
    // A stream of parts without end that no file has: headers that are comments.
    let mut comments = Vec::new();
    archive::write_header(&mut comments, &Entry { kind: b'g', size: 70 << 20, ..Entry::default() })
        .unwrap();
    comments.resize(71 << 20, 0);
    for bomb in [
        [&gzip(&large)[..], &zeroes].concat(),
        gzip(&comments),
        gzip(&[layer(&[]), vec![0; 80 << 20]].concat()),
    ] {
        assert!(bomb.len() < 1 << 20);
        let error = format!(
            "{:#}",
            disk_of(&Layout::with_layers(&[bomb]).open("").unwrap()).err().unwrap()
        );
        assert!(
            error.contains("more than 64 MiB unpacked: allow more with --image-limit"),
            "{error}"
        );
    }
}

#[test]
fn documents_that_are_none_are_refused() {
    let error = |made: &Layout| format!("{:#}", made.open("").err().unwrap());
    assert!(error(&Layout::new()).contains("index.json: the folder is no OCI layout"));
    let with = |descriptor: &str| error(&Layout::new().add(descriptor));
    assert!(with(r#""digest":"sha512:00","size":1"#).contains("no SHA-256 sum, which alone"));
    let path = format!(r#""digest":"sha256:{}","size":1"#, "../".repeat(21) + "x");
    assert!(with(&path).contains("it is no SHA-256 sum"), "{}", with(&path));
    assert!(with(r#""digest":"sha256:x""#).contains("index.json: it is not what it should be"));
    // An index cannot name itself, but can say that it does.
    let of = |digit: &str| format!(r#""digest":"sha256:{}","size":1"#, digit.repeat(64));
    assert!(with(&of("a")).contains("it is not in the folder"));
    let made = Layout::new();
    let mut inner = made.image(&[], CONFIG);
    for _ in 0..5 {
        inner = made.part(format!(r#"{{"manifests":[{{{inner}}}]}}"#).as_bytes());
    }
    assert!(error(&made.add(&inner)).contains("more than 4 indexes"));
    let made = Layout::new();
    let neither = made.part(b"{}");
    assert!(error(&made.add(&neither)).contains("it names no layers"));
    let deep = Layout::new();
    let nested = deep.part(&[b"[".repeat(100_000), b"]".repeat(100_000)].concat());
    assert!(error(&deep.add(&nested)).contains("it is not what it should be"));
    // Annotations without end.
    let made = Layout::new();
    let path = made.folder.as_path().join("index.json");
    std::fs::write(path, vec![b' '; 5 << 20]).unwrap();
    assert!(error(&made).contains("more than 4194304 bytes"));
    assert!(
        error(&Layout::with_layers(&[]).add(r#""digest":"x","size":1"#)).contains("several images")
    );
}
