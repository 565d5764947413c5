//! A machine's name.

/// A name of at most 64 letters, digits and `-`, as Firecracker has them.
pub fn instance_id(text: &str) -> Result<String, String> {
    let fits = |c: char| c.is_ascii_alphanumeric() || c == '-';
    if (1..=64).contains(&text.len()) && text.chars().all(fits) {
        return Ok(text.to_owned());
    }
    Err("say 1 to 64 letters, digits and -".into())
}
