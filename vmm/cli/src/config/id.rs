//! A machine's names: the one that the API reports, and the one that its folder has.

/// What the API reports without `--id` and `--name`.
pub const DEFAULT_ID: &str = "anonymous-instance";

/// A name of at most 64 letters, digits and `-`, as Firecracker has them.
pub fn instance_id(text: &str) -> Result<String, String> {
    let fits = |c: char| c.is_ascii_alphanumeric() || c == '-';
    if (1..=64).contains(&text.len()) && text.chars().all(fits) {
        return Ok(text.to_owned());
    }
    Err("say 1 to 64 letters, digits and -".into())
}

/// The same, as the name of a folder and a word of a command line: it begins with a letter or digit.
pub fn machine_name(text: &str) -> Result<String, String> {
    match instance_id(text) {
        Ok(name) if !name.starts_with('-') => Ok(name),
        _ => Err("say 1 to 64 letters, digits and -, not - first".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_one_of_a_folder_and_no_flag() {
        let longest = "a".repeat(64);
        for name in ["a", "7", "web-1", "A-", &longest] {
            assert_eq!(machine_name(name).as_deref(), Ok(name));
        }
        for name in [
            "",
            "-a",
            "a/b",
            "..",
            ".",
            "a b",
            "a.b",
            "\u{e4}",
            "a\n",
            "a\0",
            &(longest.clone() + "a"),
        ] {
            assert!(machine_name(name).is_err(), "{name:?}");
        }
    }
}
