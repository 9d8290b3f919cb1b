//! Reads the answers of several stores about one image, and decides whether they agree.

use crate::cri::{field, field_path};
use crate::state::image_name::bare_id;
use crate::wire;

/// The user a container runs as when its pod does not set one (`helpers.go getImageUser`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum User {
    /// By number; 0 if the image sets no user.
    Uid(u64),
    /// By name.
    Name(String),
}

/// Returns the user of the image in an encoded `ImageStatusResponse`; `None` if the image is absent.
pub fn user_if_present(reply: &[u8]) -> Option<User> {
    if !wire::has_path(reply, &[field!(ImageStatusResponse.image)]).unwrap_or(false) {
        return None;
    }
    let name = wire::peek_str(reply, &field_path!(ImageStatusResponse.image.username)).unwrap_or_default();
    let uid = wire::peek_varint(reply, &field_path!(ImageStatusResponse.image.uid.value)).unwrap_or_default();
    let has_uid = wire::has_path(reply, &field_path!(ImageStatusResponse.image.uid)).unwrap_or(false);
    Some(if has_uid || name.is_empty() { User::Uid(uid) } else { User::Name(name.to_owned()) })
}

/// The answer of one store about an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StoreAnswer {
    /// The store has the image, which has this user.
    Present(User),
    /// The store does not have the image.
    Absent,
    /// The store could not be asked, or answered with an error.
    Unavailable,
}

/// The result of comparing several stores' answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// The stores agree; send the answer with this index.
    Answer(usize),
    /// The image is absent everywhere.
    Absent,
    /// The stores disagree, or too few answered; the reason.
    Undecided(&'static str),
}

/// Decides whether the answers of several stores agree. `accept_absent` is false while a container start is
/// in progress, because kubelet runs a container as root if the image is absent. The first row that fits
/// decides:
///
/// | present at | absent at | unavailable | verdict |
/// |---|---|---|---|
/// | some | some | | undecided |
/// | some, with different users | | | undecided |
/// | some | | some | undecided, or with `accept_absent` the answer of the first that has it |
/// | all | | | the answer of the first |
/// | | | some | undecided |
/// | | all | | undecided, or with `accept_absent` absent |
pub fn compare_answers(answers: &[StoreAnswer], accept_absent: bool) -> Verdict {
    let present = |index: &usize| matches!(answers[*index], StoreAnswer::Present(_));
    let holders: Vec<_> = (0..answers.len()).filter(present).collect();
    let absent = answers.contains(&StoreAnswer::Absent);
    let unavailable = answers.contains(&StoreAnswer::Unavailable);
    match holders.first() {
        Some(_) if absent => Verdict::Undecided("one backend has it and another does not"),
        Some(_) if holders.windows(2).any(|pair| answers[pair[0]] != answers[pair[1]]) => {
            Verdict::Undecided("backends have different images by that name, with different users")
        }
        Some(_) if unavailable && !accept_absent => {
            Verdict::Undecided("a container of it is being started on a backend that does not answer")
        }
        Some(&index) => Verdict::Answer(index),
        None if unavailable => Verdict::Undecided("not every backend that may be meant answered"),
        None if accept_absent => Verdict::Absent,
        None => Verdict::Undecided("the backend that a container of it is being started on does not have it"),
    }
}

/// Returns the index of one of these encoded `ImageStatusResponse`s if all are about the same image: one
/// whose form of the ID every runtime understands, because CRI-O takes `sha256:…` for a name and containerd
/// takes plain digits.
pub fn index_of_same_image(replies: &[&[u8]]) -> Option<usize> {
    let id = |reply| wire::peek_str(reply, &field_path!(ImageStatusResponse.image.id)).unwrap_or_default();
    let first = bare_id(id(replies.first()?));
    if !replies.iter().all(|reply| bare_id(id(reply)) == first) {
        return None;
    }
    Some(replies.iter().position(|reply| id(reply) == first).unwrap_or(0))
}
