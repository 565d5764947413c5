//! Folders of the host in guests: mounted, and as a guest's root.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::process::Command;

use super::{CLOUD_BZIMAGE, Console, IN_A_BOX, Kernel, SMALL_ELF};
use crate::dir::Dir;
use crate::fixture::Vmm;
use crate::images::image;

/// A guest that runs `script` with `folder` mounted at /mnt.
fn with_share(kernel: Kernel, folder: &Dir, options: &str, script: &str) -> Vmm {
    let share = format!("{},tag=x{options}", folder.path(".").display());
    let script = format!("mkdir -p /mnt && mount -t virtiofs x /mnt && cd /mnt && {script}");
    kernel.with_cmdline("").args(["--share", &share, "--", "sh", "-c", &script])
}

#[test]
#[ignore = "boots Linux: scripts/check runs it in the KVM box"]
fn a_folder_is_read_and_written() {
    let folder = Dir::new();
    let bytes: Vec<u8> = (0..20 << 20).map(|at: u32| (at * 7 + at / 251) as u8).collect();
    fs::write(folder.path("big"), &bytes).unwrap();
    symlink("/etc/hostname", folder.path("link")).unwrap();
    let script = "cp big copy && md5sum <big && ln -s big own && mkdir d && chmod 700 d && mv d e && \
                  rm big && cat link 2>/dev/null; ls | tr '\n' ' '";
    for kernel in [SMALL_ELF, CLOUD_BZIMAGE] {
        fs::write(folder.path("big"), &bytes).unwrap();
        let outcome = with_share(kernel, &folder, "", script).run().exits(0);
        let console = Console::of(&outcome);
        // The host's file that a link names is not the guest's.
        assert_eq!(console.count("copy e link own"), 1, "{}", console.0);
        assert!(fs::read(folder.path("copy")).unwrap() == bytes);
        assert_eq!(fs::read_link(folder.path("own")).unwrap().to_str(), Some("big"));
        assert_eq!(fs::metadata(folder.path("e")).unwrap().permissions().mode() & 0o777, 0o700);
        for name in ["copy", "own"] {
            fs::remove_file(folder.path(name)).unwrap();
        }
        fs::remove_dir(folder.path("e")).unwrap();
    }
}

#[test]
#[ignore = "boots Linux: scripts/check runs it in the KVM box"]
fn nobody_in_the_guest_can_change_a_folder_that_is_read_only() {
    let folder = Dir::new();
    fs::write(folder.path("file"), "as it was").unwrap();
    let script = "cat file; echo x >file; echo x >new; rm file; chmod 777 file; touch file; mount -o remount,rw /mnt; \
                  echo x >file; mknod null c 1 3; setfattr -n user.x -v y file; true";
    let outcome = with_share(SMALL_ELF, &folder, ",readonly", script).run().exits(0);
    assert_eq!(Console::of(&outcome).count("as it was"), 1);
    assert_eq!(fs::read(folder.path("file")).unwrap(), b"as it was");
    assert_eq!(fs::metadata(folder.path("file")).unwrap().permissions().mode() & 0o777, 0o644);
    assert_eq!(fs::read_dir(folder.path(".")).unwrap().count(), 1);
}

#[test]
#[ignore = "boots Linux: scripts/check runs it in the KVM box"]
fn a_guest_that_reboots_has_its_folder_again() {
    let folder = Dir::new();
    let share = format!("{},tag=x", folder.path(".").display());
    let script = "mkdir -p /mnt; mount -t virtiofs x /mnt; cd /mnt; echo x >>lives; \
                  [ $(wc -l <lives) = 3 ] || reboot -f; cat lives | tr -d '\\\\n'; echo";
    let vmm = SMALL_ELF.runs(script).args(["--share", &share]);
    vmm.run().exits(0);
    assert_eq!(fs::read(folder.path("lives")).unwrap(), b"x\nx\nx\n");
}

/// `words` with the programs of `root`, a folder of this system.
fn with_root(kernel: Kernel, root: &str, flags: &[&str], words: &[&str]) -> Vmm {
    let modules = image(&format!("kernel-{}", kernel.flavour)).join("modules");
    let vmm = kernel.bare("").args(["--mem", "512M", "--root-dir", root]);
    let vmm = match modules.exists() {
        true => vmm.args(["--modules".into(), modules]),
        false => vmm,
    };
    vmm.args(flags).args(["--"]).args(words)
}

#[test]
#[ignore = "boots Linux: scripts/check runs it in the KVM box"]
fn this_systems_programs_run_with_another_kernel() {
    let own = fs::read_to_string("/etc/os-release").unwrap();
    for kernel in [SMALL_ELF, CLOUD_BZIMAGE] {
        let version =
            fs::read_to_string(image(&format!("kernel-{}", kernel.flavour)).join("version"));
        let script = "uname -r; cat /etc/os-release; echo x >/etc/x && cat /etc/x; exit 5";
        let outcome = with_root(kernel, "/", &[], &["sh", "-c", script]).run().exits(5);
        let expected = format!("{}\n{own}x\n", version.unwrap().trim());
        assert_eq!(Console::of(&outcome).0, expected);
        assert!(!fs::exists("/etc/x").unwrap(), "the guest has changed this system");
    }
    // It starts where this process is, if the guest has that.
    let here = std::env::current_dir().unwrap();
    let outcome = with_root(SMALL_ELF, "/", &[], &["pwd"]).run().exits(0);
    assert!(!Console::of(&outcome).0.trim().is_empty(), "{}", here.display());
}

#[test]
#[ignore = "boots Linux: scripts/check runs it in the KVM box"]
fn a_data_base_on_a_shared_folder_is_whole() {
    let folder = Dir::new();
    let share = format!("{},tag=x", folder.path(".").display());
    let script = r#"
import sqlite3
for mode in "delete", "truncate", "persist":
    db = sqlite3.connect("/mnt/db")
    db.execute("pragma journal_mode=" + mode)
    db.execute("create table if not exists t (n integer primary key, s text)")
    for n in range(60):
        with db:
            db.executemany("insert into t (s) values (?)", [("x" * n,)] * 5)
    try:
        with db:
            db.execute("delete from t")
            raise KeyError
    except KeyError:
        pass
    print(mode, db.execute("select count(*), sum(length(s)) from t").fetchone(), db.execute("pragma integrity_check").fetchone())
    db.close()
"#;
    let command = "mount -t virtiofs x /mnt && exec python3 -c \"$0\"";
    let words = ["sh", "-c", command, script];
    let outcome = with_root(SMALL_ELF, "/", &["--share", &share], &words).run().exits(0);
    let console = Console::of(&outcome);
    assert_eq!(console.count("('ok',)"), 3, "{}", console.0);
    let count = "import sqlite3; print(sqlite3.connect('db').execute('select count(*), sum(length(s)) from t').fetchone())";
    let here = Command::new("python3").args(["-c", count]).current_dir(folder.path(".")).output();
    assert_eq!(String::from_utf8(here.unwrap().stdout).unwrap(), "(900, 26550)\n");
}

#[test]
#[ignore = "boots Linux: scripts/check runs it in the KVM box"]
fn a_guest_writes_in_the_folders_of_its_root_if_it_may() {
    let folder = Dir::new();
    let busybox = image("initramfs-small");
    // The initramfs's programs, in a folder.
    let unpack =
        format!("cd {} && cpio -id --quiet <{}", folder.path(".").display(), busybox.display());
    let unpacked = Command::new("sh").args(["-c", &unpack]).status().unwrap();
    assert!(unpacked.success());
    fs::create_dir_all(folder.path("data")).unwrap();
    let root = format!("{},rw", folder.path(".").display());
    let script = "echo from the guest >/data/file; echo x >/file; ls -d /tinyvmm";
    with_root(SMALL_ELF, &root, &[], &["sh", "-c", script]).run().exits(0);
    assert_eq!(fs::read(folder.path("data/file")).unwrap(), b"from the guest\n");
    assert!(!folder.path("file").exists() && !folder.path("tinyvmm").exists());
}

/// As most users are: virtiofsd gets namespaces.
#[test]
#[ignore = "boots Linux: scripts/check runs it in the KVM box"]
fn an_ordinary_user_shares_folders_with_a_users_rights() {
    let folder = Dir::new();
    fs::write(folder.path("secret"), "of root").unwrap();
    fs::set_permissions(folder.path("secret"), PermissionsExt::from_mode(0o600)).unwrap();
    fs::create_dir(folder.path("own")).unwrap();
    std::os::unix::fs::chown(folder.path("own"), Some(1234), Some(1234)).unwrap();
    let share = format!("{},tag=x", folder.path(".").display());
    let script = "mkdir -p /mnt; mount -t virtiofs x /mnt; cd /mnt; cat secret; echo x >own/file; ls -ln own | tail -n 1";
    let vmm = Vmm::started_by(&["setpriv", "--reuid", "1234", "--regid", "1234", "--clear-groups"]);
    let copy = |from, name| {
        let to = folder.path(name);
        fs::copy(from, &to).unwrap();
        fs::set_permissions(&to, PermissionsExt::from_mode(0o644)).unwrap();
        to
    };
    // Not from the home of root.
    let (kernel, initrd) = (copy(SMALL_ELF.path(), "kernel"), copy(SMALL_ELF.initrd(), "initrd"));
    let vmm = vmm.patiently(IN_A_BOX).args(["--kernel".into(), kernel, "--initrd".into(), initrd]);
    fs::set_permissions("/dev/kvm", PermissionsExt::from_mode(0o666)).unwrap();
    let outcome = vmm.args(["--share", &share, "--", "sh", "-c", script]).run().exits(0);
    let printed = String::from_utf8_lossy(&outcome.stdout).into_owned() + &outcome.stderr;
    assert!(printed.contains("Permission denied") && !printed.contains("of root"), "{printed}");
    let made = fs::metadata(folder.path("own/file")).unwrap();
    assert_eq!(std::os::unix::fs::MetadataExt::uid(&made), 1234);
}

#[test]
#[ignore = "boots Linux: scripts/check runs it in the KVM box"]
fn a_disk_that_another_process_serves_is_read_and_written() {
    let folder = Dir::new();
    fs::write(folder.path("disk"), vec![0; 8 << 20]).unwrap();
    let (disk, socket) = (folder.path("disk"), folder.path("socket"));
    let file = format!("file,node-name=d,filename={}", disk.display());
    let export = format!(
        "vhost-user-blk,id=e,node-name=d,writable=on,addr.type=unix,addr.path={}",
        socket.display()
    );
    let mut server = Command::new("qemu-storage-daemon");
    let mut server = server.args(["--blockdev", &file, "--export", &export]).spawn().unwrap();
    while !socket.exists() {
        assert_eq!(server.try_wait().unwrap(), None, "qemu-storage-daemon has ended");
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    let served = format!("socket={},kind=blk", socket.display());
    let script = "cat /sys/block/vda/size; echo from the guest | dd of=/dev/vda seek=7 conv=sync 2>/dev/null; sync";
    for _ in 0..2 {
        let vmm = SMALL_ELF.with_cmdline("").args(["--vhost-user", &served]);
        let outcome = vmm.args(["--", "sh", "-c", script]).run().exits(0).silently();
        assert_eq!(outcome.stdout, b"16384\n");
    }
    assert!(fs::read(&disk).unwrap()[7 * 512..].starts_with(b"from the guest\n\0"));
    server.kill().unwrap();
    server.wait().unwrap();
}
