//! The manual: what a page has besides its flags, and how it is written in roff's man(7).

use clap::{Arg, Command};

use super::texts::{PAGES, Page};

/// When the pages' text was last changed.
const DATE: &str = "2026-11-27";

/// The names of the sub-commands that have a page.
pub fn names() -> impl Iterator<Item = &'static str> {
    PAGES.iter().skip(1).map(|page| page.name)
}

fn page(name: &str) -> &'static Page {
    PAGES.iter().find(|page| page.name == name).unwrap_or(&PAGES[0])
}

/// The end of the short help of the command `name`.
pub fn examples(name: &str) -> String {
    format!("Examples:\n    {}", page(name).examples.join("\n    "))
}

/// The end of its long help.
pub fn epilogue(name: &str) -> String {
    let Page { exit_codes, note, .. } = page(name);
    let mut text = examples(name) + "\n\nExit codes:";
    for (code, meaning) in *exit_codes {
        text += &format!("\n  {code:>3}  {meaning}");
    }
    if note.is_empty() { text } else { text + "\n\n" + note }
}

/// The page of `root`'s sub-command `name`, or its own.
pub fn man(root: &Command, name: Option<&str>) -> String {
    let command = name.and_then(|name| root.find_subcommand(name)).unwrap_or(root);
    let title = name.map_or_else(|| "tinyvmm".into(), |name| format!("tinyvmm-{name}"));
    let mut roff = Roff(String::new());
    let version = root.get_version().unwrap_or_default();
    let upper = title.to_uppercase();
    roff.macro_line(&format!("TH {upper} 1 {DATE} \"tinyvmm {version}\" \"User Commands\""));
    roff.macro_line("SH NAME");
    roff.wrapped(&format!("{title} - {}", text(command.get_about())));
    roff.macro_line("SH SYNOPSIS");
    roff.synopsis(command, name);
    roff.macro_line("SH DESCRIPTION");
    roff.text(&text(command.get_long_about().or(command.get_about())));
    roff.options(command);
    roff.sub_commands(command, name);
    let Page { exit_codes, note, examples, .. } = page(name.unwrap_or("tinyvmm"));
    roff.macro_line("SH EXIT STATUS");
    for (code, meaning) in *exit_codes {
        roff.item(&escape(code), meaning);
    }
    if !note.is_empty() {
        roff.macro_line("PP");
        roff.text(note);
    }
    roff.macro_line("SH EXAMPLES");
    for (index, example) in examples.iter().enumerate() {
        if index > 0 {
            roff.macro_line("PP");
        }
        roff.macro_line("EX");
        roff.line(&escape(example));
        roff.macro_line("EE");
    }
    roff.macro_line("SH SEE ALSO");
    let others =
        names().filter(|other| Some(*other) != name).map(|other| format!("tinyvmm-{other}"));
    let others: Vec<_> = name.map(|_| "tinyvmm".to_owned()).into_iter().chain(others).collect();
    for (index, other) in others.iter().enumerate() {
        let comma = if index + 1 < others.len() { " ," } else { "" };
        roff.macro_line(&format!("BR {} (1){comma}", escape(other)));
    }
    roff.0
}

/// A page so far.
struct Roff(String);

impl Roff {
    fn macro_line(&mut self, line: &str) {
        self.0 = std::mem::take(&mut self.0) + "." + line + "\n";
    }

    /// Escaped text. At a line's start a dot or an apostrophe would make it a macro.
    fn line(&mut self, line: &str) {
        let guard = if line.starts_with(['.', '\'']) { "\\&" } else { "" };
        self.0 = std::mem::take(&mut self.0) + guard + line + "\n";
    }

    /// Paragraphs, in lines that an editor shows whole; what is in backticks is bold.
    fn text(&mut self, text: &str) {
        for (index, paragraph) in text.split("\n\n").enumerate() {
            if index > 0 {
                self.macro_line("PP");
            }
            self.wrapped(paragraph);
        }
    }

    fn wrapped(&mut self, paragraph: &str) {
        let mut is_bold = false;
        let mut line = String::new();
        for word in paragraph.split_whitespace() {
            let mut marked = String::new();
            for (index, part) in word.split('`').enumerate() {
                if index > 0 {
                    is_bold = !is_bold;
                    marked += if is_bold { "\\fB" } else { "\\fR" };
                }
                marked += &escape(part);
            }
            if !line.is_empty() && line.len() + 1 + marked.len() > 79 {
                self.line(&std::mem::take(&mut line));
            }
            if !line.is_empty() {
                line.push(' ');
            }
            line += &marked;
        }
        self.line(&line);
    }

    fn item(&mut self, head: &str, body: &str) {
        self.macro_line("TP");
        self.line(head);
        for (index, paragraph) in body.split("\n\n").enumerate() {
            if index > 0 {
                self.macro_line("IP");
            }
            self.wrapped(paragraph);
        }
    }

    fn synopsis(&mut self, command: &Command, name: Option<&str>) {
        let Some(name) = name else {
            self.line("\\fBtinyvmm\\fR [\\fIOPTION\\fR]... [\\fB\\-\\-\\fR \\fICOMMAND\\fR...]");
            self.macro_line("br");
            return self.line("\\fBtinyvmm\\fR \\fISUB\\-COMMAND\\fR ...");
        };
        let mut line = format!("\\fBtinyvmm {}\\fR [\\fIOPTION\\fR]...", escape(name));
        for arg in command.get_positionals() {
            line = line + " " + &positional(arg);
        }
        if command.has_subcommands() {
            line += " \\fIACTION\\fR";
        }
        self.line(&line);
    }

    fn options(&mut self, command: &Command) {
        self.macro_line("SH OPTIONS");
        let args: Vec<_> = command.get_arguments().filter(|arg| !arg.is_hide_set()).collect();
        let mut headings: Vec<_> = args.iter().map(|arg| arg.get_help_heading()).collect();
        headings.dedup();
        for heading in headings {
            if let Some(heading) = heading {
                self.macro_line(&format!("SS {heading}"));
            }
            for arg in args.iter().filter(|arg| arg.get_help_heading() == heading) {
                self.argument(arg);
            }
        }
        if command.get_name() == "tinyvmm" {
            self.item("\\fB\\-V\\fR, \\fB\\-\\-version\\fR", "Print the version");
        }
        self.item("\\fB\\-h\\fR, \\fB\\-\\-help\\fR", "Print help, `--help` all of it");
    }

    fn argument(&mut self, arg: &Arg) {
        let head = match arg.get_long() {
            None => positional(arg),
            Some(long) => {
                let value = arg.get_value_names().unwrap_or_default().join(" ");
                let value = format!("\\fI{}\\fR", escape(&value));
                let value = match (arg.get_action().takes_values(), arg.is_require_equals_set()) {
                    (false, _) => String::new(),
                    (true, true) => format!("[={value}]"),
                    (true, false) => format!(" {value}"),
                };
                let short = arg.get_short().map(|letter| format!("\\fB\\-{letter}\\fR, "));
                format!("{}\\fB\\-\\-{}\\fR{value}", short.unwrap_or_default(), escape(long))
            }
        };
        let mut body = text(arg.get_long_help().or(arg.get_help()));
        let values = arg.get_default_values();
        if !values.is_empty() && !arg.is_hide_default_value_set() {
            let values: Vec<_> = values.iter().map(|value| value.to_string_lossy()).collect();
            body += &format!("\n\nWithout it: {}", values.join(" "));
        }
        self.item(&head, &body);
    }

    fn sub_commands(&mut self, command: &Command, name: Option<&str>) {
        if !command.has_subcommands() {
            return;
        }
        self.macro_line(if name.is_some() { "SH ACTIONS" } else { "SH SUB-COMMANDS" });
        for known in command.get_subcommands().filter(|known| !known.is_hide_set()) {
            let mut head = format!("\\fB{}\\fR", escape(known.get_name()));
            for arg in known.get_positionals().filter(|_| name.is_some()) {
                head = head + " " + &positional(arg);
            }
            self.item(&head, &text(known.get_about()));
        }
    }
}

fn positional(arg: &Arg) -> String {
    let name = arg.get_value_names().and_then(|names| names.first()).map_or("", |name| name);
    let name = format!("\\fI{}\\fR", escape(name));
    match (arg.is_last_set(), arg.is_required_set()) {
        (true, _) => format!("[\\fB\\-\\-\\fR {name}...]"),
        (false, true) => name,
        (false, false) => format!("[{name}]"),
    }
}

fn text(styled: Option<&clap::builder::StyledStr>) -> String {
    styled.map(ToString::to_string).unwrap_or_default()
}

fn escape(text: &str) -> String {
    text.replace('\\', "\\e").replace('-', "\\-")
}
