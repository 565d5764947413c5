//! How a user names an image.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

/// Where an image is, and which one of several.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reference {
    /// How it is kept.
    pub kind: Kind,
    /// A folder, or a file.
    pub path: PathBuf,
    /// The name of one; without it, there is only one.
    pub tag: Option<String>,
}

/// How an image is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A folder as the OCI image specification has it.
    Oci,
    /// A file as `docker save` writes it.
    DockerArchive,
}

impl Kind {
    const NAMES: [(&'static str, Self); 2] =
        [("oci", Self::Oci), ("docker-archive", Self::DockerArchive)];

    fn name(self) -> &'static str {
        Self::NAMES[self as usize].0
    }
}

impl FromStr for Reference {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || "say oci:DIR[:TAG] or docker-archive:FILE[:TAG]".to_owned();
        let (kind, rest) =
            text.split_once(':').ok_or_else(|| match text.starts_with(['/', '.']) {
                true => format!("say oci:{text} or docker-archive:{text}"),
                false => format!(
                    "no image is fetched: skopeo copy docker://{text} oci:DIR, then oci:DIR"
                ),
            })?;
        let kind = Kind::NAMES.iter().find(|(name, _)| *name == kind).ok_or_else(wrong)?.1;
        // As skopeo: a path has no colon, a tag may have some.
        let (path, tag) = match rest.split_once(':') {
            Some((path, tag)) => (path, Some(tag)),
            None => (rest, None),
        };
        if path.is_empty() || tag == Some("") {
            return Err(wrong());
        }
        Ok(Self { kind, path: path.into(), tag: tag.map(Into::into) })
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{}:{}", self.kind.name(), self.path.display())?;
        self.tag.iter().try_for_each(|tag| write!(f, ":{tag}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reference_is_a_kind_a_path_and_perhaps_a_tag() {
        for text in ["oci:dir", "oci:/a/b:latest", "docker-archive:f.tar:localhost:5000/x:1"] {
            assert_eq!(text.parse::<Reference>().unwrap().to_string(), text);
        }
        let refused = |text: &str| text.parse::<Reference>().unwrap_err();
        for text in ["oci:", "oci::x", "oci:d:", "docker:x", "oci-archive:f.tar"] {
            assert!(refused(text).contains("say oci:DIR[:TAG]"), "{text}");
        }
        assert!(refused("alpine").contains("skopeo copy docker://alpine oci:DIR"));
        assert!(refused("./dir").contains("oci:./dir"));
    }
}
