//! Images of containers as machines.

use std::fs;

use super::*;
use crate::cloud::{ext4, partitioned};
use crate::fixture::Dir;
use crate::host::elsewhere;
use crate::oci::{Part, layer, layout, link, part};

/// The files of an image with busybox, which is all of its programs.
fn with_busybox<'a>(busybox: &'a [u8], more: Vec<Part<'a>>) -> Vec<u8> {
    let mut parts = vec![part("bin/busybox", busybox)];
    parts.extend(["sh", "id", "ls", "stat", "cat"].map(|name| link(name_in_bin(name), "busybox")));
    parts.extend(more);
    layer(&parts)
}

fn name_in_bin(name: &str) -> &'static str {
    format!("bin/{name}").leak()
}

fn busybox() -> Vec<u8> {
    fs::read(image("compare").join("root/bin/busybox")).unwrap()
}

/// A machine with the image in `place`.
fn with_image(kernel: Kernel, place: &Dir) -> Vmm {
    let modules = image(&format!("kernel-{}", kernel.flavour)).join("modules");
    let reference = format!("oci:{}", place.path("image").display());
    let vmm = kernel.bare("").env("XDG_CACHE_HOME", place.path("cache"));
    let vmm = vmm.args(["--mem", "256M", "--image", &reference]);
    if modules.exists() { vmm.args(["--modules".into(), modules]) } else { vmm }
}

#[test]
#[ignore = "boots Linux: scripts/check runs it in the KVM box"]
fn an_image_runs_as_it_says_with_every_kernel() {
    let users = "root:x:0:0::/root:/bin/sh\nweb:x:1234:55::/srv:/bin/sh\n";
    let own = |name| Part { mode: 0o4711, owner: (7, 8), ..part(name, b"own") };
    let lower = vec![
        part("etc/passwd", users.as_bytes()),
        part("gone", b"x"),
        part("hidden/old", b"x"),
        part("both/old", b"x"),
        own("own"),
    ];
    let upper = [part(".wh.gone", b""), part("hidden/.wh..wh..opq", b""), part("hidden/new", b"")];
    let layers = [with_busybox(&busybox(), lower), layer(&upper)];
    let script = "id -u; id -g; pwd; echo $NAME $1; ls /hidden /both; stat -c '%a %u %g %s' /own; ls /gone || exit 7";
    let config = serde_json::json!({
        "Entrypoint": ["/bin/sh", "-c", script, "sh"], "Cmd": ["own"], "User": "web",
        "Env": ["NAME=a value", "PATH=/bin"], "WorkingDir": "/srv/deep",
    });
    let place = layout(&layers, &config.to_string());
    let said = |word: &str| {
        format!("1234\n55\n/srv/deep\na value {word}\n/both:\nold\n\n/hidden:\nnew\n4711 7 8 3\n")
    };
    for kernel in [SMALL_ELF, CLOUD_BZIMAGE] {
        let outcome = with_image(kernel, &place).run().exits(7);
        assert_eq!(Console::of(&outcome).0, said("own"), "{}", outcome.stderr);
        assert!(outcome.stderr.contains("ls: /gone: No such file"), "{}", outcome.stderr);
    }
    let outcome = with_image(SMALL_ELF, &place).args(["--", "another"]).run().exits(7);
    assert_eq!(Console::of(&outcome).0, said("another"));
    // On the console, where errors are output, too.
    let vmm = with_image(SMALL_ELF, &place).args(["--console".into(), place.path("console")]);
    vmm.run().exits(7);
    let console = fs::read_to_string(place.path("console")).unwrap().replace('\r', "");
    assert!(console.contains(&said("own")), "{console}");
}

#[test]
#[ignore = "boots Linux: scripts/check runs it in the KVM box"]
fn without_virtiofsd_a_folder_that_is_read_is_a_disk() {
    let place = Dir::new();
    fs::create_dir(place.path("folder")).unwrap();
    fs::write(place.path("folder/file"), "as it is").unwrap();
    let hidden = "mkdir -p /run/none; for d in /usr/libexec /usr/lib/qemu; do [ ! -e $d ] || mount --bind /run/none $d; done; \
                  exec \"$@\"";
    let share = format!("{},readonly,tag=x", place.path("folder").display());
    let script = "mkdir /mnt; mount -t erofs /dev/vda /mnt && cat /mnt/file /sys/block/vda/serial; echo y >/mnt/file";
    let vmm = Vmm::started_by(&[&elsewhere(hidden)[..], &["sh"]].concat()).patiently(IN_A_BOX);
    let vmm =
        vmm.args(["--kernel".into(), SMALL_ELF.path(), "--initrd".into(), SMALL_ELF.initrd()]);
    let vmm = vmm.env("XDG_CACHE_HOME", place.path("cache")).args(["--share", &share]);
    let outcome = vmm.args(["--", "sh", "-c", script]).run().exits(1);
    assert_eq!(outcome.stdout, b"as it isx");
    assert!(
        outcome.stderr.contains("virtiofsd is not installed, so it is a disk"),
        "{}",
        outcome.stderr
    );
    assert!(outcome.stderr.contains("Read-only file system"), "{}", outcome.stderr);
}

#[test]
#[ignore = "boots Linux: scripts/check runs it in the KVM box"]
fn an_image_need_not_have_a_shell_and_is_never_written() {
    let program = busybox();
    let layers = [layer(&[part("busybox", &program)])];
    let config = r#"{"Entrypoint":["/busybox"],"Cmd":["echo","hello"]}"#;
    let place = layout(&layers, config);
    let run = |words: &[&str]| with_image(SMALL_ELF, &place).args(["--"]).args(words).run();
    let outcome = with_image(SMALL_ELF, &place).run().exits(0).silently();
    assert_eq!(outcome.stdout, b"hello\n");
    let disks = fs::read_dir(place.path("cache/tinyvmm/disks")).unwrap();
    let disk = disks.map(|file| file.unwrap().path()).find(|path| !path.is_symlink()).unwrap();
    let before = fs::read(&disk).unwrap();
    run(&["rm", "-rf", "/busybox", "/new"]).exits(0);
    run(&["sh", "-c", "echo x >/new; kill -9 $$"]).exits(137);
    assert!(fs::read(&disk).unwrap() == before);
    // What is there of the kernel's: processes, devices, the loopback interface.
    let script = "/busybox test -d /proc/1 && /busybox test -c /dev/null && echo x | /busybox cat /dev/stdin && \
                  /busybox ping -c 1 localhost | /busybox grep -c '1 packets received'";
    assert_eq!(run(&["sh", "-c", script]).exits(0).stdout, b"x\n1\n");
}

#[test]
#[ignore = "boots Linux: scripts/check runs it in the KVM box"]
fn a_whole_disk_boots_its_own_kernel_and_finds_what_cloud_init_is_told() {
    let place = Dir::new();
    let (kernel, initrd) = (fs::read(SMALL_BZIMAGE.path()), fs::read(SMALL_BZIMAGE.initrd()));
    let files: [(&str, &[u8]); 3] = [
        ("boot/vmlinuz-6.12.1", &kernel.unwrap()),
        ("boot/initrd.img-6.12.1", &initrd.unwrap()),
        ("etc/os-release", b"ID=whole\n"),
    ];
    ext4(&place.path("part"), 40, &files);
    fs::write(place.path("disk"), partitioned(&fs::read(place.path("part")).unwrap(), 3)).unwrap();
    let vmm = Vmm::new().patiently(IN_A_BOX).env("XDG_CACHE_HOME", place.path("cache"));
    let vmm = vmm.file("key.pub", "ssh-ed25519 AAAA me\n").file("user", "#cloud-config\n");
    let vmm = vmm.args(["--kernel", "auto", "--mem", "128M", "--cloud-init", "user-data=user"]);
    let vmm = vmm.args(["--ssh-key", "key.pub"]).args(disk(&place.path("disk"), ",readonly"));
    let script = "grep -o root=.* /proc/cmdline; mount -o ro /dev/vda3 /mnt && cat /mnt/etc/os-release && umount /mnt; \
        mount -t iso9660 -o ro /dev/vdb /mnt && ls /mnt && cat /mnt/user-data && grep -o ssh-ed25519.*me /mnt/meta-data";
    let outcome = vmm.args(["--", "sh", "-c", script]).run().exits(0);
    let said =
        "root=/dev/vda3\nID=whole\nmeta-data\nuser-data\n#cloud-config\nssh-ed25519 AAAA me\n";
    assert_eq!(Console::of(&outcome).0, said, "{}", outcome.stderr);
}
