//! The error for an invalid command line: one line that names the word, the cause and the remedy.

use std::ffi::OsString;
use std::path::Path;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Arg, Command, Error};

/// Words of other programs' command lines, in sections: flags, first words, and actions on a machine.
const WORDS: &str = include_str!("words.txt");

/// Explains the `error` that `root` has made of `argv`. `argv` may be empty where it is not known.
pub fn explain(root: &Command, argv: &[OsString], error: &Error) -> String {
    let words: Vec<_> = argv.iter().skip(1).map(|word| word.to_string_lossy()).collect();
    let words: Vec<_> = words.iter().map(|word| &**word).take_while(|word| *word != "--").collect();
    let line = CommandLine::new(root, &words);
    let wrong = text(error, ContextKind::InvalidArg);
    let explained = match error.kind() {
        ErrorKind::UnknownArgument if wrong.starts_with('-') => line.unknown_flag(&wrong),
        ErrorKind::UnknownArgument => line.stray(&wrong),
        ErrorKind::InvalidSubcommand => {
            line.unknown_action(&text(error, ContextKind::InvalidSubcommand))
        }
        _ if is_of_value(error) => line.value(&wrong, error),
        ErrorKind::MissingSubcommand | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            line.missing_action()
        }
        ErrorKind::MissingRequiredArgument => {
            format!("{}: {} is missing, as in {}", line.name(), plain(&wrong), line.usage())
        }
        ErrorKind::ArgumentConflict => conflict(&wrong, &text(error, ContextKind::PriorArg)),
        _ => message(error),
    };
    let escape =
        |c: char| if c.is_control() { c.escape_default().collect() } else { String::from(c) };
    explained.chars().map(escape).collect()
}

/// The error for a flag of another program that clap takes for a request for help.
pub fn taken_for_help(argv: &[OsString]) -> Option<String> {
    let words = argv.iter().skip(1).filter_map(|word| word.to_str());
    let mut words = words.take_while(|word| *word != "--").filter(|word| word.starts_with("-h"));
    let (word, remedy) =
        words.find_map(|word| Some((word, said("flags", word.strip_prefix('-')?)?)))?;
    Some(format!("there is no flag '{word}': {remedy}"))
}

/// The sub-command that `argv` is for, as its help is asked for: `tinyvmm ctl`.
pub fn path(root: &Command, argv: &[OsString]) -> String {
    let words: Vec<_> = argv.iter().skip(1).map(|word| word.to_string_lossy()).collect();
    let words: Vec<_> = words.iter().map(|word| &**word).collect();
    CommandLine::new(root, &words)
        .commands
        .iter()
        .map(|c| c.get_name())
        .collect::<Vec<_>>()
        .join(" ")
}

/// The one of `names` that `word` may be a misspelling of.
pub fn nearest<'a>(word: &str, names: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let word = word.to_lowercase().replace('_', "-");
    let slips = |name: &str| match (word.len(), name.len()) {
        (3.., _) if name.starts_with(&*word) => 1,
        (_, 3..) if word.starts_with(name) => 1,
        _ => strsim::osa_distance(name, &word),
    };
    let near = names.map(|name| (slips(name), name));
    let near = near.filter(|(slips, name)| *slips <= name.len().max(word.len()) / 3);
    near.min_by_key(|(slips, _)| *slips).map(|(_, name)| name)
}

/// `a, b or c`.
pub fn either(names: &[&str]) -> String {
    match names {
        [others @ .., last] if !others.is_empty() => format!("{} or {last}", others.join(", ")),
        _ => names.concat(),
    }
}

/// The words of a command line, and the sub-commands that they name, the innermost last.
struct CommandLine<'a> {
    words: &'a [&'a str],
    commands: Vec<&'a Command>,
}

impl<'a> CommandLine<'a> {
    fn new(root: &'a Command, words: &'a [&'a str]) -> Self {
        let mut commands = vec![root];
        for word in words {
            let known = commands.last().and_then(|command| command.find_subcommand(word));
            // A machine's flags come without a sub-command.
            if commands.len() == 1 && known.is_none() {
                break;
            }
            commands.extend(known);
        }
        Self { words, commands }
    }

    fn command(&self) -> &'a Command {
        self.commands[self.commands.len() - 1]
    }

    fn name(&self) -> &'a str {
        self.command().get_name()
    }

    fn is_root(&self) -> bool {
        self.commands.len() == 1
    }

    /// The usage of the sub-command: `tinyvmm ctl MACHINE balloon SIZE`.
    fn usage(&self) -> String {
        let mut usage = Vec::new();
        for command in &self.commands {
            usage.push(command.get_name().to_owned());
            let words = command.get_positionals().filter(|arg| !arg.is_last_set());
            usage.extend(words.map(|arg| plain(&arg.to_string())));
        }
        if self.command().has_subcommands() {
            usage.push("ACTION".into());
        }
        usage.join(" ")
    }

    /// The flags that are valid here: a machine's flags are not a sub-command's.
    fn flags(&self) -> impl Iterator<Item = (&'a str, &'a Arg)> {
        let of = &self.commands[usize::from(!self.is_root())..];
        let args = of.iter().flat_map(|command| command.get_arguments());
        args.filter_map(|arg| Some((arg.get_long()?, arg)))
    }

    fn flag(&self, name: &str) -> Option<&'a Arg> {
        self.flags().find(|(long, _)| *long == name).map(|(_, arg)| arg)
    }

    fn unknown_flag(&self, wrong: &str) -> String {
        // clap takes the first letter of -smp for the flag.
        let is_short = wrong.chars().count() == 2;
        let is_it = |word: &&str| {
            word.split('=').next() == Some(wrong)
                || is_short && word.starts_with(wrong) && !word.starts_with("--")
        };
        // And -d is a flag: of -drive, it takes the next letter for one.
        let in_it = |word: &&str| {
            is_short && word.starts_with("-d") && word.contains(&wrong[1..]) && word.len() > 2
        };
        let mut words = self.words.iter();
        let at = words.position(is_it).or_else(|| self.words.iter().position(in_it));
        let word = at.map_or(wrong, |at| self.words[at]);
        if let Some((flag, _)) = at.and_then(|at| self.flag_before(at))
            && word[1..].starts_with(|c: char| c.is_ascii_digit())
        {
            return self.value_with_a_dash(flag, word);
        }
        let name = word.trim_start_matches('-').split('=').next().unwrap_or_default();
        let known = self.flags().map(|(long, _)| long);
        let remedy = match said("flags", name).filter(|_| self.is_root()) {
            _ if self.flag(name).is_some() => format!(": say --{name}"),
            Some(remedy) => format!(": {remedy}"),
            None => nearest(name, known)
                .map_or_else(String::new, |near| format!(": the nearest is '--{near}'")),
        };
        match self.is_root() {
            true => format!("there is no flag '{word}'{remedy}"),
            false => format!("{} has no flag '{word}'{remedy}", self.name()),
        }
    }

    /// The error for a value that begins with a dash and is taken for a flag.
    fn value_with_a_dash(&self, flag: &str, value: &str) -> String {
        let joined = format!("--{flag}={value}");
        let parsed = self.command().clone().try_get_matches_from([self.name(), &joined]);
        match parsed {
            Err(error) if is_of_value(&error) => format!("--{flag} {value}: {}", cause(&error)),
            _ => format!("--{flag} {value}: say {joined}"),
        }
    }

    /// The flag whose value the word at `at` is.
    fn flag_before(&self, at: usize) -> Option<(&'a str, &'a Arg)> {
        let name = self.words.get(at.checked_sub(1)?)?.strip_prefix("--")?;
        let arg = self.flag(name)?;
        arg.get_action().takes_values().then_some((arg.get_long()?, arg))
    }

    /// The error for a word that is neither a flag nor the value of one.
    fn stray(&self, word: &str) -> String {
        let at = self.words.iter().position(|other| *other == word);
        if self.command().has_subcommands() && (!self.is_root() || at == Some(0)) {
            return self.unknown_action(word);
        }
        if !self.is_root() {
            return format!("{}: '{word}' is a word too many, leave it out", self.name());
        }
        let before = at.and_then(|at| self.flag_before(at));
        let remedy = match before {
            Some((name, _)) => format!("the value of --{name} comes after a =, or not at all"),
            None if self.flag(word).is_some() => format!("say --{word}"),
            None if self.command().find_subcommand(word).is_some() => {
                format!("a sub-command comes first, without flags: tinyvmm {word}")
            }
            None => "quote a value that has spaces; a command for the guest comes after --".into(),
        };
        format!("'{word}' belongs to no flag: {remedy}")
    }

    /// The error for a word where a sub-command is expected.
    fn unknown_action(&self, word: &str) -> String {
        let command = self.command();
        let names = || command.get_subcommands().map(Command::get_name);
        if !self.is_root() {
            let names: Vec<_> = names().collect();
            let meant = said("actions", word).filter(|meant| names.contains(meant));
            let meant = meant.or_else(|| nearest(word, names.iter().copied()));
            let say = meant.map_or_else(|| either(&names), str::to_owned);
            return format!("{}: there is no '{word}', say {say}", self.name());
        }
        let bare = word
            .trim_start_matches(['-', '\u{2010}', '\u{2012}', '\u{2013}', '\u{2014}', '\u{2212}']);
        let acts = command.find_subcommand("ctl").and_then(|ctl| ctl.find_subcommand(word));
        let acts = acts.map(Command::get_name).or(said("actions", word));
        let remedy = match said("first words", word) {
            Some(remedy) => remedy.to_owned(),
            None if bare.len() < word.len() => {
                format!("its dash is not that of flags, say --{bare}")
            }
            None if Path::new(word).is_file() => meant_file(word),
            None if acts.is_some() => {
                format!("say tinyvmm ctl MACHINE {}", acts.unwrap_or_default())
            }
            None => match nearest(word, names()) {
                Some(near) => format!("the nearest is '{near}'"),
                None => "a machine is made of flags, as in tinyvmm --kernel FILE".into(),
            },
        };
        format!("'{word}' is no sub-command: {remedy}")
    }

    fn missing_action(&self) -> String {
        let names: Vec<_> = self.command().get_subcommands().map(Command::get_name).collect();
        format!("{}: say what to do: {}", self.name(), either(&names))
    }

    /// The error for an invalid value of a flag, or of a sub-command's argument.
    fn value(&self, wrong: &str, error: &Error) -> String {
        let name = wrong.split([' ', '=', '[']).next().unwrap_or_default();
        let name = if name.starts_with('-') { name } else { self.name() };
        match &*text(error, ContextKind::InvalidValue) {
            "" if std::error::Error::source(error).is_none() => {
                let value =
                    wrong[name.len().min(wrong.len())..].trim_start_matches(['[', '=', ' ']);
                format!("{name}: say its value, as in {name} {}", plain(value))
            }
            "" => format!("{name} '': {}", cause(error)),
            value => format!("{name} {value}: {}", cause(error)),
        }
    }
}

/// The error for a word that is an existing file: suggests flags for it.
fn meant_file(word: &str) -> String {
    match word.rsplit('.').next() {
        Some("toml") => format!("say --config {word}, or boot-test {word}"),
        Some("json") => format!("say --config-file {word}"),
        _ => format!("is it a kernel? Say --kernel {word}"),
    }
}

fn conflict(one: &str, other: &str) -> String {
    let [one, other] = [one, other].map(|arg| arg.split([' ', '[']).next().unwrap_or_default());
    match one == other {
        true => format!("{one} is there twice, leave one out"),
        false => format!("{one} and {other}: leave one out"),
    }
}

fn is_of_value(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::InvalidValue | ErrorKind::ValueValidation)
}

/// Why a value is invalid.
fn cause(error: &Error) -> String {
    if let Some(cause) = std::error::Error::source(error) {
        return cause.to_string();
    }
    match error.get(ContextKind::ValidValue) {
        Some(ContextValue::Strings(values)) if !values.is_empty() => {
            let values: Vec<_> = values.iter().map(String::as_str).collect();
            format!("say {}", either(&values))
        }
        _ => message(error),
    }
}

/// The remedy for `word` of `section`, if one is known.
fn said(section: &str, word: &str) -> Option<&'static str> {
    let of_section = WORDS.split("\n[").find_map(|part| part.strip_prefix(section))?;
    let lines = of_section.lines().filter_map(|line| line.split_once(" = "));
    let mut found = lines.filter(|(words, _)| words.split(' ').any(|other| other == word));
    found.next().map(|(_, remedy)| remedy)
}

fn text(error: &Error, kind: ContextKind) -> String {
    match error.get(kind) {
        Some(ContextValue::String(text)) => text.clone(),
        Some(ContextValue::Strings(texts)) => texts.join(", "),
        _ => String::new(),
    }
}

/// The name in `<SIZE>` or `[SIZE]`.
fn plain(arg: &str) -> String {
    arg.replace(['<', '>', '[', ']'], "")
}

/// clap's message without its usage lines and tips, which `--help` shows better.
fn message(error: &Error) -> String {
    let text = error.to_string();
    let lines = text.lines().map(str::trim).take_while(|line| !line.starts_with("Usage:"));
    let lines = lines.filter(|line| !line.is_empty() && !line.starts_with("tip:"));
    let lines = lines.map(|line| line.trim_start_matches("error: "));
    lines.collect::<Vec<_>>().join("; ").replace(":; ", ": ")
}
