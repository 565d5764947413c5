//! `tinyvmm-oci` as Podman and containerd call it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use super::SMALL_ELF;
use crate::fixture::{Dir, TINYVMM};
use crate::images::image;

/// What engines are told and what they write, in memory: their images are copied again and again.
struct Engine {
    dir: Dir,
}

impl Engine {
    /// One that has the image `bb:1`, of busybox.
    fn new() -> Self {
        let own = Dir::new();
        let path = Path::new("/dev/shm").join(own.0.file_name().unwrap());
        fs::create_dir(&path).unwrap();
        let this = Self { dir: Dir(path) };
        let runtime = Path::new(&*TINYVMM).with_file_name("tinyvmm-oci");
        assert!(runtime.is_file(), "{}: build the package tinyvmm-oci, too", runtime.display());
        let settings = this.dir.path("oci.toml");
        fs::write(&settings, format!("kernel = {:?}\n", SMALL_ELF.path())).unwrap();
        let script = format!(
            "#!/bin/sh\nTINYVMM_OCI_SETTINGS={} exec {} \"$@\"\n",
            settings.display(),
            runtime.display()
        );
        this.program("runtime", &script);
        fs::write(
            this.dir.path("policy.json"),
            r#"{"default":[{"type":"insecureAcceptAnything"}]}"#,
        )
        .unwrap();
        let podman = format!(
            "#!/bin/sh\nexport XDG_CONFIG_HOME={dir} HOME={dir} PATH=${{PATH#*:}}\nexec podman --root {dir}/root --runroot {dir}/run \
             --storage-driver vfs --cgroup-manager cgroupfs --events-backend file --runtime {dir}/runtime \"$@\"\n",
            dir = this.dir.0.display()
        );
        this.program("podman", &podman);
        fs::create_dir(this.dir.path("containers")).unwrap();
        fs::copy(this.dir.path("policy.json"), this.dir.path("containers/policy.json")).unwrap();
        let script = format!(
            "mkdir -p image/bin && cd image && mkdir etc proc sys dev tmp srv && ln -s ../../../../../../etc esc && cp {} bin && \
             for name in $(bin/busybox --list); do [ $name = busybox ] || ln -s busybox bin/$name; done && \
             tar -c . | podman import - bb:1",
            image("compare").join("root/usr/bin/busybox").display()
        );
        let made = this.shell(&script);
        assert!(made.status.success(), "{}", said(&made));
        this
    }

    fn program(&self, name: &str, text: &str) {
        use std::os::unix::fs::PermissionsExt;
        let path: PathBuf = self.dir.path(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    }

    /// Runs a script that finds our programs first.
    fn shell(&self, script: &str) -> Output {
        let path = format!("{}:{}", self.dir.0.display(), std::env::var("PATH").unwrap());
        // What hangs is to end, with what it has said. Not pipes: what an engine leaves running would keep them open.
        let file = |name: &str| fs::File::create(self.dir.path(name)).unwrap();
        let status = Command::new("timeout")
            .args(["-k", "5", "600", "bash", "-uc", script])
            .env("PATH", path)
            .current_dir(&self.dir.0)
            .stdin(Stdio::null())
            .stdout(file("stdout"))
            .stderr(file("stderr"))
            .status()
            .unwrap();
        let [stdout, stderr] =
            ["stdout", "stderr"].map(|name| fs::read(self.dir.path(name)).unwrap());
        Output { status, stdout, stderr }
    }

    /// What a script prints, line by line; on failure with all it has said.
    #[track_caller]
    fn prints(&self, script: &str, lines: &[&str]) {
        let output = self.shell(script);
        let printed = String::from_utf8_lossy(&output.stdout).replace('\r', "");
        let printed: Vec<_> = printed.lines().collect();
        assert_eq!(printed, lines, "{script}\n{}", String::from_utf8_lossy(&output.stderr));
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.shell("podman rm --force --all");
    }
}

fn said(output: &Output) -> String {
    let both = [&output.stdout[..], &output.stderr].concat();
    String::from_utf8_lossy(&both).into_owned()
}

#[test]
#[ignore = "boots Linux: scripts/check runs it in the KVM box"]
fn podman_runs_a_machine_as_it_runs_a_container() {
    let engine = Engine::new();
    // Streams apart, status, host name, and another kernel than this one.
    let script = "podman run --rm --network none --hostname web bb:1 sh -c 'echo out; echo err >&2; hostname; uname -r; exit 7' 2>err
        echo $?; cat err";
    let release = fs::read_to_string(image("kernel-small").join("version")).unwrap();
    engine.prints(script, &["out", "web", release.trim(), "7", "err"]);
    // Environment, user, folder, limits, a volume that is only read, input.
    fs::write(engine.dir.path("file"), "of the host\n").unwrap();
    let script = "echo typed | podman run --rm -i --network none -e A=b --user 5:6 -w /srv --memory 200m --cpus 1 \
        --cap-drop all -v $PWD/file:/data/file:ro -v $PWD/file:/esc/of-a-test bb:1 sh -c '
            echo $A; id -u; id -g; pwd; cat /data/file; (echo x >/data/file) 2>/dev/null || echo kept; nproc
            awk \"/MemTotal/ {print (\\$2 > 150000) (\\$2 < 204800)}\" /proc/meminfo; grep CapEff /proc/self/status; cat /etc/of-a-test; cat'; ls /etc/of-a-test 2>/dev/null";
    engine.prints(
        script,
        &[
            "b",
            "5",
            "6",
            "/srv",
            "of the host",
            "kept",
            "1",
            "11",
            "CapEff:\t0000000000000000",
            "of the host",
            "typed",
        ],
    );
    let script = "podman run --rm --network none --read-only --tmpfs /scratch bb:1 sh -c '
            touch /x 2>/dev/null || touch /scratch/y && echo kept'; podman run --rm --network none bb:1 /no/such 2>/dev/null; echo $?";
    engine.prints(script, &["kept", "127"]);
}

#[test]
#[ignore = "boots Linux: scripts/check runs it in the KVM box"]
fn podman_reaches_into_a_machine_and_ends_it() {
    let engine = Engine::new();
    let script = r#"id=$(podman run -d --name one --network none -v $PWD/kept:/data/kept bb:1 sh -c '
            trap "echo asked; exit 3" TERM; echo up; while :; do sleep 0.1; done')
        until podman logs one | grep -q up; do sleep 1; done
        podman exec one sh -c 'exit 5'; echo $?
        echo typed | podman exec -i --user 7 -e Q=r one sh -c 'echo $Q; id -u; cat'
        echo of the host >file; podman cp file one:/srv/file; podman exec one cat /srv/file
        podman exec one sh -c 'mkdir -p /srv; echo of the guest >/srv/g'; podman cp one:/srv/g g; cat g
        podman cp file one:/data/kept/copied; cat kept/copied
        podman pause one >/dev/null; podman inspect one --format '{{.State.Status}}'; podman unpause one >/dev/null
        podman top one | awk 'NR == 2 { print $2 }'; podman top one | grep -c bash
        podman stop -t 60 one >/dev/null; podman logs one
        podman inspect one --format '{{.State.ExitCode}} {{.State.Status}}'; podman diff one | grep tinyvmm
        podman rm one >/dev/null; ls /run/tinyvmm-oci | grep -c $id; pgrep -fc virtiofsd.*$id"#;
    fs::create_dir(engine.dir.path("kept")).unwrap();
    engine.prints(
        script,
        &[
            "5",
            "r",
            "7",
            "typed",
            "of the host",
            "of the guest",
            "of the host",
            "paused",
            "1",
            "0",
            "up",
            "asked",
            "3 exited",
            "0",
            "0",
        ],
    );
    // A terminal of its own, with a size.
    let script = r#"script -qec "stty rows 30 cols 100; podman run --rm -it --network none bb:1 sh -c 'tty; stty size'" /dev/null </dev/null |
        sed 's/\^@//g'"#;
    engine.prints(script, &["/dev/pts/0", "30 100"]);
}

#[test]
#[ignore = "boots Linux: scripts/check runs it in the KVM box"]
fn a_machine_takes_over_the_card_that_podman_has_made() {
    let engine = Engine::new();
    // In a network of the test's own; what the box's kernel has as modules is loaded where that is allowed.
    let script = r#"modprobe -aq bridge veth iptable_nat xt_MASQUERADE xt_comment xt_addrtype xt_conntrack tun act_mirred cls_u32 sch_ingress
        unshare --net --mount bash -uc '
        mount -t tmpfs tmpfs /run/netns 2>/dev/null || { mkdir -p /run/netns; mount -t tmpfs tmpfs /run/netns; }
        ip link set lo up
        podman run -d --name web -p 8080:80 bb:1 sh -c "mkdir /www; echo page >/www/index.html; httpd -f -p 80 -h /www" >/dev/null
        address=$(podman inspect web --format "{{.NetworkSettings.IPAddress}}")
        for try in $(seq 100); do wget -qO- -T 5 -t 1 http://$address/ && break; sleep 1; done
        wget -qO- -T 20 http://10.88.0.1:8080/
        podman run --rm bb:1 sh -c "wget -qO- http://$address/; ip route | cut -d\" \" -f 1-3 | head -1"
        podman rm -f web >/dev/null'"#;
    engine.prints(script, &["page", "page", "page", "default via 10.88.0.1"]);
}

#[test]
#[ignore = "boots Linux: scripts/check runs it in the KVM box"]
fn containerd_runs_a_machine_as_it_runs_a_container() {
    let engine = Engine::new();
    let script = r#"podman save -o bb.tar bb:1 2>/dev/null
        printf 'version = 2\nroot = "%s"\nstate = "%s"\n[grpc]\naddress = "%s"\n' $PWD/c $PWD/s $PWD/sock >c.toml
        containerd -c c.toml >log 2>&1 & trap "kill $!; wait" EXIT
        c() { ctr --address $PWD/sock "$@"; }
        until c version >/dev/null 2>&1; do sleep 1; done
        c images import bb.tar >/dev/null
        image=$(c images ls -q)
        run() { c run --snapshotter native --runc-binary $PWD/runtime "$@"; }
        run --rm $image c1 sh -c 'echo in it; exit 4'; echo $?
        run -d $image c_2.x sh -c 'echo; while :; do sleep 0.1; done'
        c task exec --exec-id e $(echo c_2.x) sh -c 'echo more; exit 6' ; echo $?
        c task pause c_2.x; c task ls | awk '/c_2.x/ { print $3 }'; c task resume c_2.x
        c task kill -s KILL c_2.x; until c task ls | grep -q STOPPED; do sleep 1; done
        c task rm c_2.x 2>/dev/null; c containers rm c_2.x; c containers ls -q | wc -l"#;
    engine.prints(script, &["in it", "4", "more", "6", "PAUSED", "0"]);
}
