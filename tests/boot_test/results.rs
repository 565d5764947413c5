//! JSON, JUnit XML, the list of names, the matrix, repetitions.

use serde_json::Value;

use super::{boot_test, fails, logs, one, passes, reports, row};
use crate::fixture::Outcome;

const TWO: &str = "
[defaults]
mem = '32M'
[[machine]]
name = 'good'
kernel = 'hello'
[[machine]]
name = 'bad'
kernel = 'reset'
";

#[track_caller]
fn names(spec: &str) -> Vec<String> {
    let outcome = boot_test(spec).args(["--list"]).run().exits(0).silently().leaves_nothing();
    String::from_utf8(outcome.stdout).unwrap().lines().map(String::from).collect()
}

fn json(outcome: &Outcome) -> Value {
    serde_json::from_str(&outcome.file("results.json")).unwrap()
}

/// `2026-01-31T23:59:59Z`.
#[track_caller]
fn assert_iso_8601(text: &str) {
    let shape: String = text.chars().map(|c| if c.is_ascii_digit() { '0' } else { c }).collect();
    assert_eq!(shape, "0000-00-00T00:00:00Z", "{text}");
}

#[test]
fn results_for_programs() {
    let outcome = reports(boot_test(TWO).args(["--json", "results.json"]).run().exits(1));
    let json = json(&outcome);
    assert_eq!(json["schema"], 1);
    assert_eq!(json["spec"], "spec.toml");
    assert_eq!((&json["interrupted"], &json["error"]), (&false.into(), &Value::Null));
    assert_iso_8601(json["timestamp"].as_str().unwrap());
    assert_eq!([&json["passed"], &json["failed"], &json["not_run"]], [1, 1, 0]);
    let [good, bad] = [&json["tests"][0], &json["tests"][1]];
    assert_eq!([&good["name"], &good["result"]], ["good", "passed"]);
    assert_eq!(good["reasons"], Value::Array(vec![]));
    assert_eq!(good["runs"][0]["exit_code"], 0);
    assert_eq!(good["runs"][0]["log"], Value::Null);
    assert!(good["runs"][0]["seconds"].as_f64().unwrap() > 0.0);
    assert_eq!([&bad["name"], &bad["result"]], ["bad", "failed"]);
    assert!(bad["reasons"][0].as_str().unwrap().contains("to be 'power-off': reboot"));
    assert_eq!(bad["runs"][0]["exit_code"], 4);
    let log = bad["runs"][0]["log"].as_str().unwrap();
    assert!(log.ends_with("/boot-test-logs/bad.log") && log.starts_with('/'), "{log}");
}

#[test]
fn results_for_ci_systems() {
    let outcome = reports(boot_test(TWO).args(["--junit", "results.xml"]).run().exits(1));
    let xml = outcome.file("results.xml");
    for part in [
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n",
        "<testsuite name=\"spec\" tests=\"2\" failures=\"1\" errors=\"0\" skipped=\"0\" time=\"",
        "<testcase classname=\"spec\" name=\"good\" time=\"",
        "<failure message=\"the end is to be &apos;power-off&apos;: reboot (the guest rebooted)\">",
        "\nresetting\n",
        "</failure>\n    </testcase>\n  </testsuite>\n</testsuites>\n",
    ] {
        assert!(xml.contains(part), "no {part} in:\n{xml}");
    }
    let stamps: Vec<&str> = xml.split(" timestamp=\"").skip(1).collect();
    assert_eq!(stamps.len(), 4, "the suites' and each machine's: {xml}");
    stamps.iter().for_each(|rest| assert_iso_8601(rest.split('"').next().unwrap()));
}

#[test]
fn figures_are_properties_for_ci_systems() {
    let vmm = boot_test(&measured("repeat = 2")).args(["--junit", "results.xml"]);
    let xml = reports(vmm.run().exits(0)).file("results.xml");
    let property = |name: &str| {
        let rest = xml.split(&format!("        <property name=\"{name}\" value=\"")).nth(1);
        rest.and_then(|rest| rest.split('"').next()?.parse::<f64>().ok())
    };
    for name in ["init-ms", "init-ms-p99", "memory-mib", "memory-mib-p99"] {
        assert!(property(name).is_some_and(|value| value > 0.0), "{name}: {xml}");
    }
    assert_eq!(xml.matches("      <properties>\n").count(), 1, "{xml}");
}

#[test]
fn what_keeps_a_spec_from_being_run_is_an_error_for_programs() {
    let files = ["--junit", "results.xml", "--json", "results.json"];
    let outcome = boot_test("[[machine]]\nname = 'm'\nmem = '5'\nkernel = 'k'").args(files).run();
    let outcome = outcome.exits(2).says(&["spec.toml: line 3: machine.mem: --mem 5"]);
    let xml = outcome.file("results.xml");
    assert!(xml.contains("tests=\"1\" failures=\"0\" errors=\"1\" skipped=\"0\""), "{xml}");
    assert!(xml.contains("<error message=\"spec.toml: line 3: machine.mem: --mem 5"), "{xml}");
    let json = json(&outcome);
    assert!(json["error"].as_str().unwrap().starts_with("spec.toml: line 3"), "{json}");
    assert_eq!(json["tests"], serde_json::json!([]));
}

#[test]
fn a_spec_and_a_baseline_may_begin_with_a_byte_order_mark() {
    let spec = format!("\u{feff}baseline = 'base.json'\n{}", one("kernel = 'hello'"));
    let base = "\u{feff}{\"schema\":1,\"machines\":{}}";
    reports(boot_test(&spec).file("base.json", base).run().exits(0)).prints("1 passed");
}

#[test]
fn results_that_cannot_be_written_are_reported_before_anything_runs() {
    for flag in ["--json", "--junit"] {
        let vmm = boot_test(TWO).args([flag, "nowhere/file"]);
        vmm.run().refuses(1, &["result nowhere/file", "No such file"]);
    }
    let vmm = boot_test(TWO).args(["--logs", "spec.toml"]);
    vmm.run().refuses(1, &["--logs spec.toml"]);
}

#[test]
fn a_matrix_makes_every_combination() {
    let matrix = "[matrix]\nmem = ['32M', '64M']\ncpus = [1, 2]\n";
    let machines = "[[machine]]\nname = 'a'\nkernel = 'hello'\n\
                    [[machine]]\nname = 'b'\nkernel = 'hello'\nmem = '48M'\n\
                    [[machine]]\nname = 'c'\nmatrix = { cpus = [4], kernel = ['hello', 'again'] }\n";
    let expected = [
        "a[mem=32M,cpus=1]",
        "a[mem=32M,cpus=2]",
        "a[mem=64M,cpus=1]",
        "a[mem=64M,cpus=2]",
        "b[cpus=1]",
        "b[cpus=2]",
        "c[mem=32M,cpus=4,kernel=hello]",
        "c[mem=32M,cpus=4,kernel=again]",
        "c[mem=64M,cpus=4,kernel=hello]",
        "c[mem=64M,cpus=4,kernel=again]",
    ];
    assert_eq!(names(&format!("{matrix}{machines}")), expected);
}

#[test]
fn each_machine_of_a_matrix_is_run_and_logged() {
    let spec = one("matrix = { kernel = ['hello', 'reset', './reset'] }");
    let outcome = fails(&spec, &["1 passed, 2 failed"]);
    assert!(row(&outcome, "m[kernel=hello]").starts_with("passed "));
    assert!(row(&outcome, "m[kernel=reset]").starts_with("failed "));
    assert_eq!(logs(outcome.dir()), ["m_kernel=._reset_2.log", "m_kernel=reset_1.log"]);
}

#[test]
fn only_some_can_be_run() {
    let vmm = boot_test(TWO).args(["--only", "goo"]);
    reports(vmm.run().exits(0)).leaves_nothing().prints("1 passed");
}

#[test]
fn a_machine_can_be_run_several_times() {
    let json_of = |spec: &str, code| {
        let outcome = boot_test(spec).args(["--json", "results.json"]).run().exits(code);
        (json(&outcome), logs(outcome.dir()))
    };
    let (results, kept) = json_of(&one("kernel = 'hello'\nrepeat = 3"), 0);
    assert_eq!(results["tests"][0]["runs"].as_array().unwrap().len(), 3);
    assert_eq!(kept, [""; 0]);
    let (results, kept) = json_of(&one("kernel = 'reset'\nrepeat = 3"), 1);
    let reason = results["tests"][0]["reasons"][0].as_str().unwrap();
    assert!(reason.starts_with("3 of 3 runs: the end is to be"), "{reason}");
    assert_eq!(kept, ["m+1.log", "m+2.log", "m+3.log"]);
}

#[test]
fn a_figure_that_is_not_measured_is_no_success() {
    let keys = |budget: &str| one(&format!("kernel = 'idle'\nexpect = 'up'\nbudget = {budget}"));
    // These guests have no init.
    fails(&keys("{ init-ms = 5000 }"), &["init-ms was not measured, so its budget cannot be"]);
    passes(&keys("{ instructions = 9e18 }"));
}

/// A machine with init's mark, and with `keys` more.
fn measured(keys: &str) -> String {
    one(&format!("kernel = 'status'\nexit-status = 42\n{keys}"))
}

#[test]
fn figures_are_measured_and_shown() {
    let flags = ["--json", "results.json"];
    let outcome = reports(boot_test(&measured("repeat = 3")).args(flags).run().exits(0));
    let json = json(&outcome);
    let test = &json["tests"][0];
    for name in ["init-ms", "memory-mib"] {
        let of = |which: &str| test["figures"][name][which].as_f64().unwrap();
        assert!(of("median") > 0.0 && of("p99") >= of("median"), "{name}: {json}");
        assert!(test["runs"][2]["figures"][name].as_f64().unwrap() > 0.0, "{name}: {json}");
    }
    assert_eq!(test["runs"][0]["end"], "exit");
    outcome.prints("p99 of 3 runs: exits ");
}

#[test]
fn a_budget_is_kept_or_the_machine_fails() {
    passes(&measured("budget = { init-ms = 1e9, memory-mib = { median = 1e6, p99 = 1e6 } }"));
    let over = measured("budget = { memory-mib = 0.5, init-ms = { p99 = 0 } }");
    let outcome = fails(&over, &["memory-mib is ", ", the budget is 0.5"]);
    assert_eq!(logs(outcome.dir()), ["m.log"]);
    // All that is wrong is reported at once.
    outcome.prints("init-ms p99 is ").prints(", the budget is 0\n");
}

#[test]
fn a_baseline_is_saved_and_then_compared_with() {
    let spec =
        format!("baseline = 'base.json'\n{}", measured("tolerance = { memory-mib = '50%' }"));
    let saved = boot_test(&spec).args(["--save-baseline"]).run().exits(0);
    let mut base: Value = serde_json::from_str(&saved.file("base.json")).unwrap();
    assert_eq!(base["schema"], 1);
    let memory = base["machines"]["m"]["memory-mib"].as_f64().unwrap();
    let run = |base: &Value| boot_test(&spec).file("base.json", base.to_string()).run();
    reports(run(&base).exits(0));
    base["machines"]["m"]["memory-mib"] = (memory / 2.0).into();
    let outcome = run(&base).exits(1).prints("memory-mib is ");
    outcome.prints(" and 50% more are tolerated");
    base["machines"] = serde_json::json!({});
    run(&base).exits(0).prints("note: not in the baseline: --save-baseline adds it");
}

#[test]
fn a_new_baseline_keeps_what_was_not_run_and_leaves_out_what_failed() {
    let machine = |name: &str, status: u8| {
        format!("[[machine]]\nname = '{name}'\nkernel = 'status'\nexit-status = {status}\n")
    };
    let spec = format!("baseline = 'base.json'\n{}{}", machine("good", 42), machine("bad", 1));
    let old = r#"{"schema":1,"machines":{"other":{"exits":7.0},"bad":{"exits":8.0}}}"#;
    let vmm = boot_test(&spec).file("base.json", old).args(["--save-baseline"]);
    let base: Value = serde_json::from_str(&vmm.run().exits(1).file("base.json")).unwrap();
    let machines = &base["machines"];
    assert_eq!(
        (&machines["other"]["exits"], &machines["bad"]["exits"]),
        (&7.0.into(), &8.0.into())
    );
    assert!(machines["good"]["memory-mib"].as_f64().unwrap() > 0.0, "{base}");
}

#[test]
fn the_specs_in_the_manual_and_of_this_project_are_right() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let read = |name: &str| std::fs::read_to_string(root.join(name)).unwrap();
    let manual = read("docs/boot-test.md");
    let blocks: Vec<&str> = manual.split("```toml\n").skip(1).collect();
    let block = |index: usize| blocks[index].split("```").next().unwrap();
    assert_eq!(blocks.len(), 3);
    assert_eq!(names(block(0)).join(" ").matches("network-stack[cpus=").count(), 4);
    assert_eq!(names(&one(&format!("kernel = 'k'\n{}", block(1)))), ["m"]);
    let machine = "\n[[machine]]\nname = 'n'\nkernel = 'k'\n";
    assert_eq!(names(&format!("{}{machine}", block(2))), ["n"]);
    let own = names(&read("tests/boot-test.toml"));
    assert!(own.len() > 10 && own.contains(&"panic".to_owned()), "{own:?}");
}
