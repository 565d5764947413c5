//! Completions for the word under the cursor. The shell's script runs `tinyvmm complete WORDS...` at each Tab, so that
//! all shells offer the same: what this tinyvmm takes.

use clap::{Arg, Command, ValueEnum, ValueHint};
use tinyvmm::config::{DiskConfig, NetConfig, ShareConfig, VhostUserConfig, VsockConfig};

/// A shell with a completion script.
#[derive(ValueEnum, Clone, Copy, Debug)]
pub enum Shell {
    /// bash, with or without the package bash-completion
    Bash,
    /// fish
    Fish,
    /// zsh
    Zsh,
}

impl Shell {
    /// The script that makes the shell ask tinyvmm for completions.
    pub fn script(self) -> &'static str {
        match self {
            Self::Bash => BASH,
            Self::Fish => FISH,
            Self::Zsh => ZSH,
        }
    }
}

// bash takes a = for a word of its own, and what comes after it for the word that is replaced.
const BASH: &str = r#"_tinyvmm() {
    local words=() word offer offers
    for word in "${COMP_WORDS[@]:1:COMP_CWORD}"; do
        if ((${#words[@]})) && [[ $word == = || ${words[-1]} == --*= ]]; then
            words[-1]+=$word
        else
            words+=("$word")
        fi
    done
    word=${words[-1]}
    [[ $word == --*=* ]] && word=${word#*=}
    COMPREPLY=()
    mapfile -t offers < <("${1/#\~/$HOME}" complete -- "${words[@]}" 2>/dev/null)
    for offer in "${offers[@]}"; do
        case $offer in
        $'\tfiles') compopt -o filenames 2>/dev/null
            mapfile -t -O ${#COMPREPLY[@]} COMPREPLY < <(compgen -f -- "$word") ;;
        *)  offer=${offer%%$'\t'*}
            [[ ${words[-1]} == --*=* ]] && offer=${offer#*=}
            COMPREPLY+=("$offer")
            [[ $offer == *= ]] && compopt -o nospace 2>/dev/null ;;
        esac
    done
}
complete -F _tinyvmm tinyvmm
"#;

const FISH: &str = r#"function __tinyvmm_offers
    set -l words (commandline -opc)
    set -l word (commandline -ct)
    for offer in ($words[1] complete -- $words[2..] "$word" 2>/dev/null)
        if test $offer = \tfiles
            set -l flag (string match -r -- '^--[^=]*=' "$word")
            for file in (__fish_complete_path (string replace -- "$flag" '' "$word"))
                echo "$flag$file"
            end
        else
            echo $offer
        end
    end
end
complete -c tinyvmm -f -a '(__tinyvmm_offers)'
"#;

const ZSH: &str = r#"#compdef tinyvmm
_tinyvmm() {
    local offer files
    local -a offers open shown shown_open # Open ones go on after their =.
    for offer in "${(@f)$(${~words[1]} complete -- "${(@Q)words[2,CURRENT]}" 2>/dev/null)}"; do
        case $offer in
        $'\tfiles') files=1 ;;
        *=) open+=("$offer"); shown_open+=("$offer") ;;
        ?*) offers+=("${offer%%$'\t'*}"); shown+=("${offer/$'\t'/  -- }") ;;
        esac
    done
    compadd -l -d shown -a offers
    compadd -l -S '' -d shown_open -a open
    if [[ -n $files ]]; then
        [[ $PREFIX == --*=* ]] && compset -P '--[^=]##='
        _files
    fi
}
if [[ $funcstack[1] == _tinyvmm ]]; then
    _tinyvmm "$@"
else
    compdef _tinyvmm tinyvmm
fi
"#;

/// A word and its meaning, and whether files are offered, too.
#[derive(Default)]
struct Offers {
    words: Vec<(String, String)>,
    files: bool,
}

/// The completions for the last of `words`, one a line: the word, a tab, its meaning. A line of a tab and `files`
/// offers files, too.
pub fn offers(root: &Command, words: &[String]) -> String {
    let Some((typed, before)) = words.split_last() else { return String::new() };
    let mut offers = Offers::default();
    offers.collect(root, before, typed);
    let mut text = String::new();
    for (word, meaning) in offers.words.iter().filter(|(word, _)| word.starts_with(&**typed)) {
        text += word;
        if !meaning.is_empty() {
            text = text + "\t" + meaning;
        }
        text += "\n";
    }
    if offers.files {
        text += "\tfiles\n";
    }
    text
}

impl Offers {
    fn collect(&mut self, root: &Command, before: &[String], typed: &str) {
        // The sub-commands so far, and how many words of its own the last one has.
        let mut commands = vec![root];
        let mut position = 0;
        let mut words = before.iter();
        while let Some(word) = words.next() {
            if word == "--" {
                return; // The guest's command.
            }
            if let Some(arg) = flag(&commands, word) {
                let has_value = arg.get_action().takes_values() && !arg.is_require_equals_set();
                if has_value && words.next().is_none() {
                    return self.values(arg, "", typed);
                }
            } else if positional(&commands, position).is_some() && !word.starts_with('-') {
                position += 1;
            } else if !word.starts_with('-') {
                let last = commands[commands.len() - 1];
                let Some(known) = last.find_subcommand(word) else { return };
                commands.push(known);
                position = 0;
            }
        }
        if let Some((name, value)) = typed.split_once('=')
            && let Some(arg) = flag(&commands, name)
        {
            return self.values(arg, &typed[..typed.len() - value.len()], value);
        }
        if typed.starts_with('-') {
            return self.flags(&commands, before);
        }
        let last = commands[commands.len() - 1];
        match positional(&commands, position) {
            Some(arg) => self.values(arg, "", typed),
            // A machine's flags come without a sub-command.
            None if last.has_subcommands() && (commands.len() > 1 || before.is_empty()) => {
                let known = last.get_subcommands().filter(|known| !known.is_hide_set());
                let offers = known.map(|known| (known.get_name().into(), about(known.get_about())));
                self.words.extend(offers);
            }
            None => self.flags(&commands, before),
        }
    }

    fn flags(&mut self, of: &[&Command], before: &[String]) {
        let given = |name: &str| before.iter().any(|word| word.split('=').next() == Some(name));
        for arg in arguments(of) {
            let Some(name) = arg.get_long().map(|name| format!("--{name}")) else { continue };
            let again = matches!(arg.get_action(), clap::ArgAction::Append);
            if !arg.is_hide_set() && (again || !given(&name)) {
                self.words.push((name, about(arg.get_help())));
            }
        }
        self.words.push(("--help".into(), "Print help".into()));
    }

    /// Values of `arg`: those that it names itself, and options after a comma, as its value's name has them.
    fn values(&mut self, arg: &Arg, prefix: &str, typed: &str) {
        let name = arg.get_value_names().and_then(|names| names.first()).map_or("", |name| name);
        let (first, options) = name.split_once("[,").unwrap_or((name, ""));
        if let Some((kept, _)) = typed.rsplit_once(',') {
            let kept = format!("{prefix}{kept},");
            let all: &[&str] = match arg.get_id().as_str() {
                "disk" => &DiskConfig::OPTIONS,
                "net" => &NetConfig::OPTIONS,
                "vsock" => &VsockConfig::OPTIONS,
                "share" => &ShareConfig::OPTIONS,
                "vhost-user" => &VhostUserConfig::OPTIONS,
                _ => &[],
            };
            self.words.extend(all.iter().map(|option| (format!("{kept}{option}"), String::new())));
            if !all.is_empty() {
                return;
            }
            for option in options.split("[,") {
                let end = option.find(['=', '[', ']']).unwrap_or(option.len());
                let (option, rest) = option.split_at(end);
                let value = rest.contains('=').then(|| format!("{kept}{option}="));
                let bare = (!rest.starts_with('=') && !option.is_empty())
                    .then(|| format!("{kept}{option}"));
                self.words.extend(bare.into_iter().chain(value).map(|word| (word, String::new())));
            }
            return;
        }
        let values = arg.get_possible_values();
        for value in values.iter().filter(|value| !value.is_hide_set()) {
            self.words.push((format!("{prefix}{}", value.get_name()), about(value.get_help())));
        }
        for word in first.split('|').filter(|_| values.is_empty()) {
            match word.split_once('=') {
                Some((option, _)) => self.words.push((format!("{prefix}{option}="), String::new())),
                None if word.starts_with(|c: char| c.is_ascii_lowercase()) => {
                    self.words.push((format!("{prefix}{word}"), String::new()));
                }
                #[cfg(feature = "api")]
                None if word == "MACHINE" => {
                    let machines = crate::names::all().unwrap_or_default();
                    self.words
                        .extend(machines.into_iter().map(|known| (known.name, String::new())));
                    self.files |= arg.get_value_hint() != ValueHint::Unknown;
                }
                None => self.files |= word == "FILE" || arg.get_value_hint() != ValueHint::Unknown,
            }
        }
    }
}

/// Flags and words of the last of `commands`, and flags of those above it; a machine's are not a sub-command's.
fn arguments<'a>(commands: &[&'a Command]) -> impl Iterator<Item = &'a Arg> {
    commands[usize::from(commands.len() > 1)..].iter().flat_map(|command| command.get_arguments())
}

fn flag<'a>(commands: &[&'a Command], word: &str) -> Option<&'a Arg> {
    let name = word.strip_prefix("--")?;
    arguments(commands).find(|arg| arg.get_long() == Some(name))
}

fn positional<'a>(commands: &[&'a Command], position: usize) -> Option<&'a Arg> {
    let last = commands.last()?;
    last.get_positionals().filter(|arg| !arg.is_last_set()).nth(position)
}

fn about(text: Option<&clap::builder::StyledStr>) -> String {
    text.map(|text| text.to_string().lines().next().unwrap_or_default().to_owned())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;
    use crate::cli::Cli;

    #[track_caller]
    fn offered(line: &str) -> String {
        let words: Vec<String> = line.split(' ').map(String::from).collect();
        let text = offers(&Cli::command(), &words);
        let words = text
            .lines()
            .map(|line| line.strip_prefix('\t').map_or(line.split('\t').next().unwrap(), |_| "*"));
        words.collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn a_word_is_offered_where_it_can_be() {
        for (line, words) in [
            ("", "doctor boot-test cache ctl ps stop logs attach exec shell cp completions man"),
            ("d", "doctor"),
            ("--ker", "--kernel --kernel-entry"),
            ("--kernel x --ker", "--kernel-entry"),
            ("--disk x --dis", "--disk"),
            ("--kernel ", "*"),
            ("--kernel=", "*"),
            ("--kernel=x --uart ", "ports memory"),
            ("--uart=p", "--uart=ports"),
            ("--hugepages=", "--hugepages=true --hugepages=false"),
            ("--hugepages --uart m", "memory"),
            ("--console ", "stdio off *"),
            ("--balloon ", "off"),
            ("--mem ", ""),
            ("--mem 1G,", "1G,max="),
            ("--mem=1G,m", "--mem=1G,max="),
            ("--disk a b,", ""),
            ("--disk b,r", "b,readonly"),
            ("--disk b,s", "b,sector=512 b,sector=4096"),
            ("--disk b,a", "b,aio=threads b,aio=io_uring"),
            ("--disk b,lock", "b,lock=off"),
            ("--disk b,readonly,o", "b,readonly,overlay b,readonly,overlay="),
            ("--cpus 4,", "4,sockets= 4,cores= 4,threads="),
            ("--jail ", "user="),
            ("--log-level w", "warn"),
            ("--kernel x -- ", ""),
            ("--kernel x d", ""),
            ("doctor --", "--json --help"),
            ("doctor --json --", "--help"),
            ("cache ", "list clear"),
            ("cache l", "list"),
            ("ctl S st", "status stats stop"),
            ("ctl S --w", "--watch"),
            ("logs S --f", "--follow"),
            ("ctl S status --j", "--json"),
            ("ctl S balloon 1M --ker", ""),
            ("boot-test ", "*"),
            ("boot-test x --logs ", "*"),
            ("completions ", "bash fish zsh"),
            ("man c", "cache ctl cp completions"),
            ("nonsense ", ""),
        ] {
            assert_eq!(offered(line), words, "{line:?}");
        }
        assert_eq!(offers(&Cli::command(), &[]), "");
    }
}
