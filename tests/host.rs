//! A host that lacks something: /dev/kvm is missing or closed, and how `doctor` reports that.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::fixture::{Outcome, Vmm};
use crate::{bzimage, guests};

/// Hides /dev and its contents.
const WITHOUT_KVM: &str = "mount -t tmpfs none /dev && exec \"$@\"";
/// Puts a file in the place of /dev/kvm that nobody may open, not even root once its
/// capabilities are gone.
const WITH_KVM_CLOSED: &str =
    "mount --bind closed /dev/kvm && exec setpriv --bounding-set=-all --inh-caps=-all -- \"$@\"";

/// A command that runs a program after `script` has changed the mounts, e.g. /dev.
pub fn elsewhere(script: &str) -> [&str; 5] {
    // Root needs no user namespace, which not every host allows.
    let is_root = fs::metadata("/proc/self").unwrap().uid() == 0;
    ["unshare", if is_root { "-m" } else { "-Urm" }, "sh", "-c", script]
}

/// A tinyvmm whose /dev `script` has changed; `None` where the host forbids that.
fn vmm(script: &str) -> Option<Vmm> {
    let words = elsewhere(script);
    let vmm = Vmm::started_by(&[words.as_slice(), &["sh"]].concat()).file("closed", "");
    let closed = vmm.dir().path("closed");
    fs::set_permissions(&closed, fs::Permissions::from_mode(0o000)).unwrap();
    let mut probe = Command::new(words[0]);
    probe.args(&words[1..]).args(["sh", "true"]).current_dir(vmm.dir().path(""));
    let probe = probe.stderr(Stdio::piped()).output().unwrap();
    if probe.status.success() {
        return Some(vmm);
    }
    eprintln!("SKIPPED: this host does not let /dev be changed for a test: {probe:?}");
    None
}

#[test]
fn without_dev_kvm_the_error_says_what_to_do() {
    let Some(vmm) = vmm(WITHOUT_KVM) else { return };
    let vmm = vmm.guest(guests::hello).args(["--console", "console.txt"]);
    vmm.run()
        .refuses(3, &["no /dev/kvm", "Intel VT-x or AMD SVM", "kvm_intel or kvm_amd", "doctor"]);
}

#[test]
fn without_permission_the_error_says_what_to_do() {
    let Some(vmm) = vmm(WITH_KVM_CLOSED) else { return };
    let vmm = vmm.guest(guests::hello).args(["--console", "console.txt"]);
    vmm.run().refuses(3, &["no permission for /dev/kvm", "usermod -aG kvm", "doctor"]);
}

#[test]
fn where_no_machine_can_run_boot_tests_report_an_error_with_doctors_advice() {
    for script in [WITHOUT_KVM, WITH_KVM_CLOSED] {
        let (Some(doctor), Some(vmm)) = (vmm(script), vmm(script)) else { return };
        let doctor = json(&doctor.args(["doctor", "--json"]).run().exits(2));
        let findings = doctor["findings"].as_array().unwrap();
        let obstacle = findings.iter().find(|finding| finding["status"] == "unusable").unwrap();
        let [detail, remedy] = ["detail", "remedy"].map(|key| obstacle[key].as_str().unwrap());
        let spec = "[[machine]]\nname = 'm'\nkernel = 'kernel'\n";
        let flags = ["boot-test", "spec.toml", "--json", "results.json", "--junit", "results.xml"];
        let outcome = vmm.file("spec.toml", spec).args(flags).run().exits(3);
        let outcome = outcome.says(&["this host cannot run machines: ", detail, remedy]);
        let results: Value = serde_json::from_str(&outcome.file("results.json")).unwrap();
        assert_eq!((&results["not_run"], &results["failed"]), (&1.into(), &0.into()));
        assert!(results["error"].as_str().unwrap().contains(remedy), "{results}");
        let xml = outcome.file("results.xml");
        assert!(xml.contains("tests=\"2\" failures=\"0\" errors=\"1\" skipped=\"1\""), "{xml}");
        assert!(xml.contains("<error message=\"this host cannot run machines: "), "{xml}");
        assert!(xml.contains("<skipped message=\"not run\"/>"), "{xml}");
    }
}

#[test]
fn without_dev_kvm_what_needs_none_works() {
    for args in [["--version"].as_slice(), &["--help"], &["--print-config"], &["man"]] {
        let Some(vmm) = vmm(WITHOUT_KVM) else { return };
        vmm.args(args).run().exits(0).silently();
    }
    let Some(vmm) = vmm(WITHOUT_KVM) else { return };
    // An invalid command line is reported first: it is invalid on every host.
    vmm.args(["--mem", "5", "--kernel", "x"]).run().refuses(2, &["--mem 5"]);
}

#[test]
fn doctor_says_that_a_host_is_unusable_and_why() {
    let Some(missing) = vmm(WITHOUT_KVM) else { return };
    missing.args(["doctor"]).run().exits(2).prints("unusable").prints("absent").silently();
    let Some(closed) = vmm(WITH_KVM_CLOSED) else { return };
    let outcome = closed.args(["doctor"]).run().exits(2).silently();
    outcome.prints("unusable").prints("cannot open /dev/kvm");
    let Some(closed) = vmm(WITH_KVM_CLOSED) else { return };
    let json = json(&closed.args(["doctor", "--json"]).run().exits(2).silently());
    assert_eq!(json["verdict"], "unusable");
    let findings = json["findings"].as_array().unwrap();
    let finding = findings.iter().find(|finding| finding["name"] == "permission").unwrap();
    assert!(finding["remedy"].as_str().is_some_and(|remedy| !remedy.is_empty()), "{finding}");
}

fn json(outcome: &Outcome) -> Value {
    serde_json::from_slice(&outcome.stdout).expect("doctor --json prints JSON")
}

#[test]
fn doctor_reports_the_same_in_words_in_json_and_by_its_exit_code() {
    let outcome = Vmm::new().args(["doctor", "--json"]).run().silently();
    let (code, json) = (outcome.code(), json(&outcome));
    let verdict = ["ready", "limited", "unusable"][usize::try_from(code).unwrap()];
    assert_eq!(json["verdict"], verdict);
    assert_eq!(json["exit_code"], code);
    let kinds = ["vmx", "svm", "interpreting", "unknown"];
    assert!(kinds.iter().any(|kind| json["kvm_kind"] == *kind), "{json}");
    let findings = json["findings"].as_array().unwrap();
    assert!(findings.len() >= 5, "{json}");
    for finding in findings {
        let text = |key: &str| finding[key].as_str().is_some_and(|text| !text.is_empty());
        assert!(text("name") && text("detail"), "{finding}");
        let statuses = ["info", "ok", "limited", "unusable"];
        assert!(statuses.iter().any(|status| finding["status"] == *status), "{finding}");
    }
    let words = Vmm::new().args(["doctor"]).run().exits(code).silently();
    let last = String::from_utf8(words.stdout).unwrap().lines().last().unwrap().to_owned();
    assert!(last.starts_with(verdict), "{last}");
}

#[test]
fn doctor_knows_a_host_on_which_these_tests_run() {
    Vmm::new().guest(guests::hello).args(["--mem", "16M"]).run().exits(0);
    let doctor = Vmm::new().args(["doctor"]).run();
    assert_ne!(doctor.code(), 2, "a machine has just run here");
}

#[test]
fn a_kernel_that_this_host_interprets_is_reported_if_it_is_linux() {
    let interprets = fs::exists("/sys/module/kvm_pvm").unwrap();
    let mut kernel = bzimage::setup();
    bzimage::put(&mut kernel, 0x1f4, &64u32.to_le_bytes()); // syssize
    bzimage::put(&mut kernel, 0x260, &0x1000u32.to_le_bytes()); // init_size
    kernel.resize(bzimage::SETUP + 0x200, 0x90);
    kernel.extend(guests::idle());
    kernel.resize(bzimage::SETUP + 1024, 0);
    let stderr = |kernel: &[u8]| {
        let vmm = Vmm::new().kernel(kernel).args(["--timeout", "300ms"]);
        vmm.run().exits(7).prints("idle").stderr
    };
    let by_hand = stderr(&kernel);
    assert_eq!(by_hand, "tinyvmm: stopped: --timeout is over\n", "a kernel without a version");
    bzimage::put(&mut kernel, 0x20e, &0x100u16.to_le_bytes()); // kernel_version
    let reason = "this host's KVM (kvm_pvm) interprets guest kernels, and stock ones fail on it: use scripts/kvm-box";
    let expected =
        format!("tinyvmm: warn: {reason}\ntinyvmm: stopped: --timeout is over; {reason}\n");
    assert_eq!(stderr(&kernel), if interprets { expected } else { by_hand });
}

#[test]
fn doctor_can_be_piped_to_a_reader_that_leaves() {
    let code = Vmm::new().args(["doctor"]).run().code();
    for args in [["doctor"].as_slice(), &["doctor", "--json"]] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        Vmm::new().args(args).stdout(writer).run().exits(code).silently();
    }
}
