//! Tells whether an image of a list is the one a reference names.
//!
//! A filter may name an image by ID, a prefix of it, a tag or a digest, short or in full; runtimes list full
//! names. It follows distribution's `reference.ParseDockerRef`, which containerd and CRI-O use: the domain
//! defaults to `docker.io`, its one-part names live under `library/`, the tag to `latest`, and a digest makes
//! the tag irrelevant. It must not ask anything of a registry.

use std::borrow::Cow;

use crate::cri::{ITEM_ID, field};
use crate::wire;

/// Hex digits of an image ID.
const ID_DIGITS: usize = 64;

/// How a reference matches an image, the most certain kind first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum MatchKind {
    /// By its whole ID, as it is listed.
    Id,
    /// By its whole ID, but with `sha256:` where the list has none, or without.
    OtherSpelling,
    /// By a tag or digest, short or in full.
    Name,
    /// By the beginning of its ID.
    IdPrefix,
}

/// Tells whether the encoded `Image` is the one `reference` names.
pub(super) fn is_named(image: &[u8], reference: &str) -> bool {
    match_kind(image, reference).is_some()
}

/// Returns how `reference` matches the encoded `Image`; `None` if it does not.
pub fn match_kind(image: &[u8], reference: &str) -> Option<MatchKind> {
    let id = wire::peek_str(image, &[ITEM_ID]).unwrap_or_default();
    if !reference.is_empty() && bare_id(id) == bare_id(reference) {
        return Some(if id == reference { MatchKind::Id } else { MatchKind::OtherSpelling });
    }
    let full = normalise(reference);
    let mut names = names(image);
    if names.any(|name| name == reference || normalise(name) == full) {
        return Some(MatchKind::Name);
    }
    is_id_prefix(id, reference).then_some(MatchKind::IdPrefix)
}

/// Iterates over the tags and digests of an encoded `Image`.
pub fn names(image: &[u8]) -> impl Iterator<Item = &str> {
    let texts = |number| wire::items(image, number).filter_map(|name| std::str::from_utf8(name.ok()?).ok());
    texts(field!(Image.repo_tags)).chain(texts(field!(Image.repo_digests)))
}

/// Returns an image ID without the `sha256:` that containerd writes before it and CRI-O does not.
pub fn bare_id(id: &str) -> &str {
    id.strip_prefix("sha256:").unwrap_or(id)
}

/// Returns whether `reference` is a whole image ID, with or without `sha256:`.
pub fn is_whole_id(reference: &str) -> bool {
    let digits = bare_id(reference);
    digits.len() == ID_DIGITS && digits.bytes().all(|byte| byte.is_ascii_hexdigit())
}

fn is_id_prefix(id: &str, reference: &str) -> bool {
    let prefix = bare_id(reference);
    !prefix.is_empty()
        && prefix.bytes().all(|byte| byte.is_ascii_hexdigit())
        && bare_id(id).starts_with(prefix)
}

/// Returns the full name of `reference`: `domain/path:tag` or `domain/path@digest`; of a whole ID its digits.
pub fn normalise(reference: &str) -> String {
    if is_whole_id(reference) {
        return bare_id(reference).to_owned();
    }
    let (name, suffix) = match reference.split_once('@') {
        Some((name, digest)) => (without_tag(name).0, format!("@{digest}")),
        None => match without_tag(reference) {
            (name, Some(tag)) => (name, format!(":{tag}")),
            (name, None) => (name, ":latest".to_owned()),
        },
    };
    let (domain, path) = split_domain(name);
    format!("{domain}/{path}{suffix}")
}

fn without_tag(name: &str) -> (&str, Option<&str>) {
    match name.rsplit_once(':') {
        Some((name, tag)) if !tag.contains('/') => (name, Some(tag)),
        _ => (name, None),
    }
}

fn split_domain(name: &str) -> (&str, Cow<'_, str>) {
    let (domain, path) = match name.split_once('/') {
        Some((first, rest)) if is_domain(first) => (first, rest),
        _ => ("docker.io", name),
    };
    let domain = if domain == "index.docker.io" { "docker.io" } else { domain };
    if domain == "docker.io" && !path.contains('/') {
        return (domain, Cow::Owned(format!("library/{path}")));
    }
    (domain, Cow::Borrowed(path))
}

fn is_domain(first: &str) -> bool {
    first == "localhost" || first.contains(['.', ':']) || first.chars().any(char::is_uppercase)
}

#[cfg(test)]
mod tests {
    use prost::Message;

    use super::*;
    use crate::cri;

    #[test]
    fn names_are_completed_as_docker_does() {
        for (short, full) in [
            ("busybox", "docker.io/library/busybox:latest"),
            ("busybox:1.36", "docker.io/library/busybox:1.36"),
            ("team/app", "docker.io/team/app:latest"),
            ("index.docker.io/busybox", "docker.io/library/busybox:latest"),
            ("localhost/app", "localhost/app:latest"),
            ("localhost:5000/app", "localhost:5000/app:latest"),
            ("quay.io/a/b:v1", "quay.io/a/b:v1"),
            ("busybox:1@sha256:ab", "docker.io/library/busybox@sha256:ab"),
        ] {
            assert_eq!(normalise(short), full);
        }
        let id = "4f".repeat(32);
        assert_eq!((normalise(&id), normalise(&format!("sha256:{id}"))), (id.clone(), id));
    }

    #[test]
    fn a_name_goes_before_the_beginning_of_an_id() {
        let image = |id: &str, tag: &str| {
            cri::Image { id: id.into(), repo_tags: vec![tag.into()], ..Default::default() }.encode_to_vec()
        };
        assert_eq!(
            match_kind(&image("sha256:00", "docker.io/library/cafe:latest"), "cafe"),
            Some(MatchKind::Name)
        );
        assert_eq!(match_kind(&image("cafe00", "a:1"), "cafe"), Some(MatchKind::IdPrefix));
        assert_eq!(match_kind(&image("cafe", "a:1"), "sha256:cafe"), Some(MatchKind::OtherSpelling));
        assert_eq!(match_kind(&image("cafe", "a:1"), "cafe"), Some(MatchKind::Id));
    }

    #[test]
    fn an_image_is_found_by_id_prefix_tag_and_digest_and_by_nothing_else() {
        let image = cri::Image {
            id: "sha256:4f0a11".into(),
            repo_tags: vec!["docker.io/library/busybox:1.36".into()],
            repo_digests: vec!["docker.io/library/busybox@sha256:dd".into()],
            ..Default::default()
        }
        .encode_to_vec();
        for match_kind in
            ["sha256:4f0a11", "4f0a", "sha256:4f", "busybox:1.36", "busybox@sha256:dd", "busybox:x@sha256:dd"]
        {
            assert!(is_named(&image, match_kind), "{match_kind}");
        }
        for other in
            ["busybox", "sha256:", "0a11", "busybox:1.3", "busybox@sha256:d", "quay.io/busybox:1.36", ""]
        {
            assert!(!is_named(&image, other), "{other}");
        }
    }
}
