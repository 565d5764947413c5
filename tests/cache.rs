//! Kernels that are unpacked, kept, and found again: bzImages whose payload is a small guest, and whose
//! own decompressor is another.

use std::ffi::OsString;
use std::fs::{self, Permissions};
use std::io::Write;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use flate2::Compression;
use flate2::write::GzEncoder;

use crate::fixture::{Dir, TINYVMM, Vmm};
use crate::{bzimage as image, guests};

const UNPACKED_HERE: &str = "hello byte by byte";
const UNPACKED_ITSELF: &str = "I unpack myself";

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// A bzImage with this payload.
fn bzimage(payload: &[u8]) -> Vec<u8> {
    let mut kernel = vec![0; 0x200];
    kernel.extend(guests::unpacks_itself());
    let payload_offset = kernel.len();
    kernel.extend(payload);
    kernel.resize(kernel.len().next_multiple_of(16), 0);
    let mut file = image::setup();
    let mut put = |offset: usize, bytes: &[u8]| image::put(&mut file, offset, bytes);
    put(0x1f4, &(kernel.len() as u32 / 16).to_le_bytes()); // syssize
    put(0x248, &(payload_offset as u32).to_le_bytes());
    put(0x24c, &(payload.len() as u32).to_le_bytes());
    put(0x260, &0x10_0000u32.to_le_bytes()); // init_size
    [file, kernel].concat()
}

fn whole() -> Vec<u8> {
    bzimage(&gzip(&guests::elf(&guests::hello())))
}

/// A machine with this kernel, and its cache in `cache`.
fn vmm(kernel: &[u8], cache: &Path) -> Vmm {
    Vmm::new().kernel(kernel).args(["--mem", "32M"]).env("XDG_CACHE_HOME", cache)
}

#[track_caller]
fn boots(kernel: &[u8], cache: &Path) {
    vmm(kernel, cache).run().exits(0).silently().prints(UNPACKED_HERE);
}

fn kernels(cache: &Dir) -> PathBuf {
    cache.path("tinyvmm/kernels")
}

/// The files in a cache but for the names that people know its kernels by, sorted.
fn kept(cache: &Dir) -> Vec<PathBuf> {
    let files = fs::read_dir(kernels(cache)).unwrap();
    let mut files: Vec<_> = files.map(|file| file.unwrap().path()).collect();
    files.retain(|path| !path.file_name().unwrap().to_string_lossy().starts_with("name-"));
    files.sort();
    files
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

fn command(cache: &Dir, what: &str) -> String {
    let mut command = std::process::Command::new(&*TINYVMM);
    let output = command.args(["cache", what]).env("XDG_CACHE_HOME", cache.path("")).output();
    let output = output.unwrap();
    assert!(output.status.success(), "cache {what}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn a_kernel_is_kept_for_its_owner_listed_and_removed() {
    let cache = Dir::new();
    assert_eq!(command(&cache, "list"), "");
    boots(&whole(), &cache.path(""));
    boots(&whole(), &cache.path(""));
    let [entry] = &kept(&cache)[..] else { panic!("not one entry: {:?}", kept(&cache)) };
    assert_eq!((mode(entry), mode(&kernels(&cache))), (0o600, 0o700));
    let key = entry.file_name().unwrap().to_str().unwrap();
    assert!(command(&cache, "list").contains(&format!(" min  {}  \"/", &key[..16])));
    assert_eq!(command(&cache, "clear"), "");
    assert_eq!(fs::read_dir(kernels(&cache)).unwrap().count(), 0);
}

#[test]
fn a_kernel_is_listed_by_where_it_was_when_last_booted() {
    let cache = Dir::new();
    let listed = || command(&cache, "list");
    let vmm = || vmm(&whole(), &cache.path(""));
    let first = vmm().run().exits(0);
    assert!(listed().ends_with(&format!("  {:?}\n", first.dir().path("kernel"))), "{}", listed());
    // Neither a link nor an escape sequence of a name gets anywhere.
    let name = OsString::from_vec(b"\x1b[2J \"\n\xff".to_vec());
    let other = Vmm::new().args(["--mem", "32M"]).env("XDG_CACHE_HOME", cache.path(""));
    symlink("kernel", other.dir().path(&name)).unwrap();
    let other = other.file("kernel", whole()).args([OsString::from("--kernel"), name.clone()]);
    let second = other.run().exits(0).silently();
    let listed = listed();
    assert_eq!(listed.lines().count(), 1, "{listed}");
    assert!(listed.ends_with(&format!("  {:?}\n", second.dir().path(&name))), "{listed}");
    assert!(listed.trim_end().is_ascii() && !listed.trim_end().contains(char::is_control));
}

#[test]
fn each_bzimage_has_an_entry_of_its_own() {
    let cache = Dir::new();
    boots(&whole(), &cache.path(""));
    boots(&[whole(), vec![0]].concat(), &cache.path(""));
    assert_eq!(kept(&cache).len(), 2);
}

#[test]
fn a_bzimage_unpacks_itself_where_that_is_asked_for_or_all_that_can_be() {
    let cache = Dir::new();
    let asked = vmm(&whole(), &cache.path("")).args(["--kernel-entry", "decompress"]);
    let elf = guests::elf(&guests::hello());
    let packed = gzip(&elf);
    let (mut damaged, mut longer) = (packed.clone(), packed.clone());
    damaged[packed.len() / 2] ^= 0x10;
    let size_at = packed.len() - 4;
    longer[size_at..].copy_from_slice(&u32::MAX.to_le_bytes());
    let unknown = [b"\x89LZO", &packed[4..]].concat();
    let no_kernel = gzip(b"this is no kernel");
    let truncated = gzip(&elf[..elf.len() - 1]);
    let payloads = [&damaged, &longer, &unknown, &no_kernel, &truncated, &vec![0; 3], &vec![]];
    asked.run().exits(0).silently().prints(UNPACKED_ITSELF);
    let words = ["the kernel is left to unpack itself, which may fail: "];
    for payload in payloads {
        let vmm = vmm(&bzimage(payload), &cache.path(""));
        let outcome = vmm.run().exits(0).prints(UNPACKED_ITSELF);
        if payload.is_empty() {
            outcome.silently()
        } else {
            outcome.says(&words)
        };
    }
    let elsewhere = |field: usize, value: u32| {
        let mut file = whole();
        file[field..field + 4].copy_from_slice(&value.to_le_bytes());
        let outcome = vmm(&file, &cache.path("")).run().exits(0).prints(UNPACKED_ITSELF);
        if value == 0 {
            outcome.silently()
        } else {
            outcome.says(&words)
        };
    };
    elsewhere(0x248, u32::MAX);
    elsewhere(0x24c, u32::MAX);
    elsewhere(0x24c, 0);
    let kept = if kernels(&cache).exists() { kept(&cache) } else { vec![] };
    assert_eq!(kept, Vec::<PathBuf>::new());
}

#[test]
fn a_damaged_entry_is_never_booted_and_made_anew() {
    let cache = Dir::new();
    boots(&whole(), &cache.path(""));
    let entry = kept(&cache).remove(0);
    let good = fs::read(&entry).unwrap();
    let code = good.windows(5).position(|part| part == b"hello").unwrap();
    // In the ELF's header, in what it loads, in the checksums, and after them.
    for at in [24, 64 + 8, code, good.len() - 30, good.len() - 20, good.len() - 1] {
        let mut bad = good.clone();
        bad[at] ^= 0x20;
        fs::write(&entry, &bad).unwrap();
        boots(&whole(), &cache.path(""));
        assert_eq!(fs::read(&entry).unwrap(), good, "byte {at}");
    }
    for len in [0, 23, good.len() / 2, good.len() - 1] {
        fs::write(&entry, &good[..len]).unwrap();
        boots(&whole(), &cache.path(""));
        assert_eq!(fs::read(&entry).unwrap(), good, "{len} bytes");
    }
}

#[test]
fn a_cache_that_cannot_be_used_is_done_without() {
    boots(&whole(), Path::new("/proc"));
    boots(&whole(), Path::new("/dev/null"));
    vmm(&whole(), Path::new("relative")).env("HOME", "").run().exits(0).prints(UNPACKED_HERE);
    let cache = Dir::new();
    vmm(&whole(), &cache.path("")).args(["--no-kernel-cache"]).run().prints(UNPACKED_HERE);
    let kept_nothing = |cache: &Dir| !kernels(cache).exists() || kept(cache).is_empty();
    assert!(kept_nothing(&cache));
    // A link, of the folder or of one above it.
    let (target, linked) = (Dir::new(), Dir::new());
    symlink(target.path(""), linked.path("tinyvmm")).unwrap();
    boots(&whole(), &linked.path(""));
    assert_eq!(target.entries(), Vec::<String>::new());
    fs::create_dir_all(cache.path("tinyvmm")).unwrap();
    symlink(target.path(""), kernels(&cache)).unwrap();
    boots(&whole(), &cache.path(""));
    assert_eq!(target.entries(), Vec::<String>::new());
    // A folder that others may write to.
    let open = Dir::new();
    fs::create_dir_all(kernels(&open)).unwrap();
    fs::set_permissions(kernels(&open), Permissions::from_mode(0o777)).unwrap();
    boots(&whole(), &open.path(""));
    assert!(kept_nothing(&open));
}

#[test]
fn an_entry_that_is_a_link_is_replaced() {
    let cache = Dir::new();
    boots(&whole(), &cache.path(""));
    let entry = kept(&cache).remove(0);
    let elsewhere = cache.path("elsewhere");
    fs::rename(&entry, &elsewhere).unwrap();
    symlink(&elsewhere, &entry).unwrap();
    boots(&whole(), &cache.path(""));
    assert!(fs::symlink_metadata(&entry).unwrap().is_file());
}

#[test]
fn a_full_disk_costs_the_cache_only() {
    // No file may have more than these 512-byte blocks.
    let wrapper = ["sh", "-c", "ulimit -f 0; exec \"$@\"", "sh"];
    let cache = Dir::new();
    let vmm = Vmm::started_by(&wrapper).env("XDG_CACHE_HOME", cache.path(""));
    vmm.kernel(&whole()).args(["--mem", "32M"]).run().exits(0);
    assert_eq!(kept(&cache), Vec::<PathBuf>::new());
}

#[test]
fn many_at_once_share_one_entry() {
    let cache = Dir::new();
    let kernel = whole();
    for _ in 0..2 {
        let start = |_| vmm(&kernel, &cache.path("")).start();
        let running: Vec<_> = (0..32).map(start).collect();
        for vmm in running {
            vmm.wait().exits(0).silently().prints(UNPACKED_HERE);
        }
        assert_eq!(kept(&cache).len(), 1);
    }
}

#[test]
fn a_compressed_kernel_starts_again_with_a_cache_and_without() {
    let cache = Dir::new();
    let kernel = bzimage(&gzip(&guests::elf(&guests::acpi_reset())));
    // The first time it is not in the cache, the second time it is; then there is none.
    for args in [[].as_slice(), &[], &["--no-kernel-cache"]] {
        let running = vmm(&kernel, &cache.path("")).args(args).start();
        running.prints(&"boot 1\n".repeat(5));
    }
    let running = vmm(&kernel, &cache.path("")).start().prints("boot 1\n");
    // The file of a loaded kernel stays open.
    fs::remove_dir_all(kernels(&cache)).unwrap();
    running.prints(&"boot 1\n".repeat(10));
}
