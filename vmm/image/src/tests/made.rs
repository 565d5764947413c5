//! What a disk has of its image.

use archive::{FILE, FOLDER, HARD_LINK, LINK};

use super::*;

const SOME: &Entries = &[
    (FOLDER, "./", ""),
    (FOLDER, "./etc/", ""),
    (FILE, "./etc/name", "value"),
    (HARD_LINK, "./etc/same", "etc/name"),
    (LINK, "/lib", "usr/lib"),
    (FILE, "usr/lib/deep/file", ""),
    (archive::PIPE, "pipe", ""),
    (archive::CHARACTERS, "null", ""),
];

#[test]
fn a_disk_has_the_files_of_its_layers() {
    let later: &Entries = &[(FILE, "etc/name", "other"), (FILE, "lib/by-link", "x")];
    let found = files_of(&[SOME, later]);
    let expected = [
        ("/", "40751 1000:50 4"),
        ("/etc/", "40751 1000:50 2"),
        ("/etc/name", "100751 1000:50 1 other"),
        ("/etc/same", "100751 1000:50 1 value"),
        ("/lib", "120751 1000:50 1 usr/lib"),
        ("/null", "20751 1000:50 1 0"),
        ("/pipe", "10751 1000:50 1 "),
        ("/usr/", "40755 0:0 3"),
        ("/usr/lib/", "40755 0:0 3"),
        ("/usr/lib/by-link", "100751 1000:50 1 x"),
        ("/usr/lib/deep/", "40755 0:0 2"),
        ("/usr/lib/deep/file", "100751 1000:50 1 "),
    ];
    let expected: Vec<_> = expected.map(|(path, what)| (path.into(), what.into())).into();
    assert_eq!(found.into_iter().collect::<Vec<(String, String)>>(), expected);
    assert_eq!(files_of(&[SOME])["/etc/same"], "100751 1000:50 2 value");
    assert_eq!(files_of(&[]).into_iter().collect::<Vec<_>>(), [("/".into(), "40755 0:0 2".into())]);
}

#[test]
fn large_folders_and_long_links_are_in_blocks_of_their_own() {
    let names: Vec<_> = (0..3000).map(|n| format!("d/{}-{n}", "x".repeat(n % 200))).collect();
    let mut entries: Vec<_> = names.iter().map(|name| (FILE, &**name, &**name)).collect();
    let (long, longest) = ("t/".repeat(1000), "t".repeat(4095));
    entries.extend([(LINK, "long", &*long), (LINK, "longest", &*longest)]);
    // Inodes with something beside them end at any place of their block.
    let links: Vec<_> = (1..300).map(|len| (format!("l{len}"), "y".repeat(len * 6))).collect();
    entries.extend(links.iter().map(|(name, target)| (LINK, &**name, &**target)));
    let found = files_of(&[&entries]);
    assert_eq!(found.len(), 3000 + 2 + 299 + 2);
    for (kind, name, text) in entries {
        let kind = if kind == LINK { 120_751 } else { 100_751 };
        assert_eq!(found[&format!("/{name}")], format!("{kind} 1000:50 1 {text}"));
    }
}

#[test]
fn the_same_layers_make_the_same_bytes_however_they_are_packed() {
    let plain = [layer(SOME), layer(&[(FILE, "a", "b")])];
    let packed = [gzip(&plain[0]), gzip(&plain[1])];
    let bytes = |layers: &[Vec<u8>]| {
        let image = Layout::with_layers(layers).open("").unwrap();
        let file = disk_of(&image).unwrap();
        let mut bytes = vec![0; file.metadata().unwrap().len() as usize];
        file.read_exact_at(&mut bytes, 0).unwrap();
        (image.key, bytes)
    };
    let (key, first) = bytes(&plain);
    assert!(bytes(&plain) == (key.clone(), first.clone()));
    let (other, same) = bytes(&packed);
    assert!(first == same && key != other);
    assert_ne!(bytes(&plain[..1]).0, key);
}

#[test]
fn the_image_for_this_machine_is_found_by_its_tag() {
    let config = r#"{"os":"linux","architecture":"amd64","config":{"Entrypoint":["/e"],"Cmd":null,
        "Env":["A=b"],"WorkingDir":"/w","User":"u:g","Labels":{"x":"y"}},"history":[1]}"#;
    let made = Layout::new();
    let (ours, others) =
        (made.image(&[], config), made.image(&[], r#"{"os":"linux","architecture":"arm64"}"#));
    let of = |architecture: &str| {
        format!(r#""platform":{{"os":"linux","architecture":"{architecture}"}}"#)
    };
    let inner =
        format!(r#"{{"manifests":[{{{others},{}}},{{{ours},{}}}]}}"#, of("arm64"), of("amd64"));
    let inner = made.part(inner.as_bytes());
    let tag =
        |tag: &str| format!(r#""annotations":{{"org.opencontainers.image.ref.name":"{tag}"}}"#);
    let made = made.add(&format!("{inner},{}", tag("latest")));
    let run = made.open("").unwrap().run;
    assert_eq!(run.entrypoint.unwrap(), ["/e"]);
    assert_eq!((run.cmd, run.env.unwrap()), (None, vec!["A=b".to_owned()]));
    assert_eq!((run.working_dir.unwrap(), run.user.unwrap()), ("/w".into(), "u:g".into()));
    let made = made.add(&format!("{others},{}", tag("arm")));
    let refused = |tag: &str| format!("{:#}", made.open(tag).err().unwrap());
    assert!(made.open(":latest").is_ok());
    assert!(refused("").contains("name one with :TAG (arm, latest)"), "{}", refused(""));
    assert!(refused(":none").contains("no image none in it (arm, latest)"));
    assert!(refused(":arm").contains("it is for linux/arm64: fetch that for linux/amd64"));
}

#[test]
fn a_file_of_dockers_has_the_same_image() {
    let layers = [layer(SOME), layer(&[(FILE, "a", "b")])];
    let ids: Vec<_> =
        layers.iter().map(|layer| format!("\"sha256:{}\"", Sum::of(layer).hex())).collect();
    let config = format!(
        r#"{{"os":"linux","architecture":"amd64","rootfs":{{"type":"layers","diff_ids":[{}]}}}}"#,
        ids.join(",")
    );
    let name = format!("{}.json", Sum::of(config.as_bytes()).hex());
    let manifest = format!(
        r#"[{{"Config":"{name}","RepoTags":["localhost/b:1"],"Layers":["one.tar","2/layer.tar"]}}]"#
    );
    let open = |second: &[u8], config: &str, tag: &str| -> Result<Vec<u8>> {
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        let (first, second) = (text(&layers[0]), text(second));
        let file = layer(&[
            (FILE, &name, config),
            (FILE, "one.tar", &first),
            (LINK, "2/layer.tar", "../two.tar"),
            (FILE, "two.tar", &second),
            (FILE, "manifest.json", &manifest),
        ]);
        let place = TempFile::new().unwrap();
        place.as_file().write_all_at(&file, 0)?;
        let text = format!("docker-archive:{}{tag}", place.as_path().display());
        let disk = disk_of(&Image::open(&text.parse().unwrap())?)?;
        let mut bytes = vec![0; disk.metadata()?.len() as usize];
        disk.read_exact_at(&mut bytes, 0)?;
        Ok(bytes)
    };
    let disk = disk_of(&Layout::with_layers(&layers).open("").unwrap()).unwrap();
    let mut expected = vec![0; disk.metadata().unwrap().len() as usize];
    disk.read_exact_at(&mut expected, 0).unwrap();
    for tag in ["", ":1", ":b:1", ":localhost/b:1"] {
        assert!(open(&layers[1], &config, tag).unwrap() == expected, "{tag}");
    }
    let refused = |second, config, tag| format!("{:#}", open(second, config, tag).unwrap_err());
    assert!(refused(&layers[1], &config, ":2").contains("no image 2 in it (localhost/b:1)"));
    assert!(refused(&layers[0], &config, "").contains("it is damaged or was changed"));
    assert!(
        refused(&layers[1], &config.replace("linux", "Linux"), "")
            .contains("its configuration: it is damaged")
    );
}

#[test]
fn a_folder_of_this_host_is_made_a_disk() {
    let folder = TempDir::new().unwrap();
    let path = |name: &str| folder.as_path().join(name);
    std::fs::create_dir(path("d")).unwrap();
    std::fs::write(path("d/file"), "contents").unwrap();
    std::fs::hard_link(path("d/file"), path("same")).unwrap();
    std::os::unix::fs::symlink("d/file", path("link")).unwrap();
    let _listener = std::os::unix::net::UnixListener::bind(path("socket")).unwrap();
    let file = TempFile::new().unwrap().into_file();
    assert!(!is_whole(&file));
    write_folder(folder.as_path(), &file, LIMIT).unwrap();
    assert!(is_whole(&file));
    let found = read(&file);
    file.set_len(file.metadata().unwrap().len() - 4096).unwrap();
    assert!(!is_whole(&file));
    assert_eq!(found.keys().collect::<Vec<_>>(), ["/", "/d/", "/d/file", "/link", "/same"]);
    assert!(found["/d/file"].ends_with("0:0 2 contents"), "{found:?}");
    assert!(found["/link"].ends_with("0:0 1 d/file"), "{found:?}");
    let small = TempFile::new().unwrap().into_file();
    let error = format!("{:#}", write_folder(folder.as_path(), &small, 4096).unwrap_err());
    assert!(error.contains("more than 0 MiB"), "{error}");
    assert!(write_folder(&path("none"), &small, LIMIT).is_err());
}
