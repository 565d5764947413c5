//! Completions in their shells, and the manual in man(1)'s own checker. Programs that are not installed are left out;
//! scripts/check installs all of them.

use std::path::PathBuf;
use std::process::Command;

use crate::fixture::{Dir, TINYVMM, Vmm};

/// A typed line, and all completions for its last word, or the line after Tab.
type Typed<'a> = (&'a str, &'a [&'a str]);

const OFFERED: [Typed; 14] = [
    ("doct", &["doctor"]),
    ("c", &["cache", "completions", "cp", "ctl"]),
    ("--kernel-", &["--kernel-entry"]),
    ("--kernel bz", &["bzImage"]),
    ("--kernel=bz", &["--kernel=bzImage"]),
    ("--uart ", &["memory", "ports"]),
    ("--uart=p", &["--uart=ports"]),
    ("--disk bzImage,r", &["bzImage,readonly"]),
    ("cache ", &["clear", "list"]),
    ("ctl vm.sock st", &["stats", "status", "stop"]),
    ("ctl vm.sock --w", &["--watch"]),
    ("boot-test bz", &["bzImage"]),
    ("completions ", &["bash", "fish", "zsh"]),
    ("--kernel x -- do", &[]),
];

/// Whether `program` is installed, as scripts/check sees to.
fn is_there(program: &str) -> bool {
    let is_there = Command::new(program).arg("--version").output().is_ok();
    if !is_there {
        eprintln!("left out: {program} is not installed");
    }
    is_there
}

/// A folder with the completion script for `shell`, and with a file to complete.
fn folder(shell: &str) -> Dir {
    let dir = Dir::new();
    let script = Vmm::new().args(["completions", shell]).run().exits(0).silently();
    std::fs::write(dir.path("script"), script.stdout).unwrap();
    std::fs::write(dir.path("bzImage"), "").unwrap();
    dir
}

/// The output of `shell`, which runs `program` with `words`.
fn printed(dir: &Dir, shell: &[&str], program: &str, words: &[&str]) -> String {
    std::fs::write(dir.path("program"), program).unwrap();
    let mut command = Command::new(shell[0]);
    command.args(&shell[1..]).arg("program").args(words).current_dir(&dir.0);
    let output = command.env("HOME", &dir.0).env("TERM", "dumb").output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && stderr.is_empty(), "{shell:?} {words:?}: {stderr}");
    String::from_utf8(output.stdout).unwrap()
}

fn sorted(text: &str) -> Vec<&str> {
    let mut lines: Vec<_> = text.lines().filter(|line| !line.is_empty()).collect();
    lines.sort_unstable();
    lines
}

#[test]
fn bash_offers_what_can_follow() {
    // bash takes a = for a word of its own, so the words are split here as bash does.
    let program = "source ./script; IFS=' ' read -ra words <<<\"${2//=/ = }\"; [[ $2 == *' ' ]] && words+=('')\n\
        COMP_WORDS=(\"$1\" \"${words[@]}\") COMP_CWORD=${#words[@]}\n\
        _tinyvmm \"$1\"; printf '%s\\n' \"${COMPREPLY[@]}\"";
    for (line, offers) in OFFERED {
        let dir = folder("bash");
        let text = printed(&dir, &["bash", "--norc"], program, &[&TINYVMM, line]);
        let offers: Vec<_> = offers
            .iter()
            .map(|offer| offer.trim_start_matches("--uart=").trim_start_matches("--kernel="))
            .collect();
        assert_eq!(sorted(&text), offers, "{line}");
    }
}

#[test]
fn bash_knows_whose_completions_they_are() {
    let dir = folder("bash");
    let program = "source ./script; complete -p tinyvmm";
    let text = printed(&dir, &["bash", "--norc"], program, &[]);
    assert_eq!(text, "complete -F _tinyvmm tinyvmm\n");
}

#[test]
fn fish_offers_what_can_follow() {
    if !is_there("fish") {
        return;
    }
    let program = "source ./script; complete -C \"$argv[1] $argv[2]\"";
    for (line, offers) in OFFERED {
        let dir = folder("fish");
        let text = printed(&dir, &["fish", "--no-config"], program, &[&TINYVMM, line]);
        let lines: Vec<_> =
            sorted(&text).iter().map(|line| line.split('\t').next().unwrap()).collect();
        assert_eq!(lines, offers, "{line}");
    }
}

#[test]
fn zsh_completes_what_is_the_only_thing_that_can_follow() {
    // The shell's own line editor, on a terminal: Tab, then a key that prints the line.
    const ZSH: &str = r#"zmodload zsh/zpty
zpty shell zsh -f -i
zpty -w shell "PS1= PS2= RPS1=; unsetopt prompt_cr prompt_sp; autoload -Uz compinit; compinit -D -u; source ./script"
zpty -w shell 'show() { print -r -- "<<$BUFFER>>" }; zle -N show; bindkey "^X" show; bindkey "^I" complete-word; echo rea""dy'
zpty -r -m shell text '*ready*'
for line in "${@:2}"; do
    zpty -w -n shell $'\x15'"$1 $line"$'\t\x18'
    zpty -r -m shell text '*<<*>>*'
    print -r -- "${${text##*<<$1 }%%>>*}"
done
zpty -d shell
"#;
    if !is_there("zsh") {
        return;
    }
    let lines = [
        ("doct", "doctor "),
        ("--kernel-", "--kernel-entry "),
        ("--kernel bz", "--kernel bzImage "),
        ("--kernel=bz", "--kernel=bzImage "),
        ("--uart p", "--uart ports "),
        ("--uart=p", "--uart=ports "),
        ("--disk bzImage,r", "--disk bzImage,readonly "),
        ("--mem 1G,", "--mem 1G,max="),
        ("cache l", "cache list "),
        ("ctl vm.sock po", "ctl vm.sock power-button "),
        ("ctl vm.sock --w", "ctl vm.sock --watch "),
        ("doctor --j", "doctor --json "),
        ("boot-test bz", "boot-test bzImage "),
        ("man ct", "man ctl "),
        ("--kernel x -- do", "--kernel x -- do"),
    ];
    let words: Vec<_> =
        [TINYVMM.as_str()].into_iter().chain(lines.map(|(typed, _)| typed)).collect();
    let text = printed(&folder("zsh"), &["zsh", "-f"], ZSH, &words);
    assert_eq!(text.lines().collect::<Vec<_>>(), lines.map(|(_, completed)| completed));
}

#[test]
fn every_page_of_the_manual_is_as_man_wants_it() {
    let pages = ["ps", "stop", "logs", "attach", "completions", "man"];
    let pages = ["doctor", "boot-test", "cache", "ctl"].into_iter().chain(pages);
    for args in [vec!["man"]].into_iter().chain(pages.map(|page| vec!["man", page])) {
        let page = Vmm::new().args(&args).run().exits(0).silently();
        let text = String::from_utf8(page.stdout).unwrap();
        for section in ["NAME", "SYNOPSIS", "DESCRIPTION", "OPTIONS", "EXIT STATUS", "EXAMPLES"] {
            assert!(text.contains(&format!("\n.SH {section}\n")), "{args:?}: {section}: {text}");
        }
        let title = args.join("-").replace("man-", "tinyvmm-").to_uppercase();
        let title = if args.len() == 1 { "TINYVMM".into() } else { title };
        assert!(text.starts_with(&format!(".TH {title} 1 20")), "{text}");
        if is_there("mandoc") {
            let dir = Dir::new();
            let path: PathBuf = dir.path("page.1");
            std::fs::write(&path, text).unwrap();
            let lint = Command::new("mandoc").args(["-T", "lint"]).arg(path).output().unwrap();
            assert_eq!(String::from_utf8_lossy(&lint.stdout), "", "{args:?}");
        }
    }
}
