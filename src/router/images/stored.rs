//! Finds the images that a reference names in the lists of stores.

use std::collections::BTreeSet;

use crate::cri::{ITEM_ID, LIST_ITEMS};
use crate::error::Error;
use crate::router::images::Rule;
use crate::state::image_name::{self, MatchKind, bare_id};
use crate::wire;

/// An image that a reference names, in one store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredImage {
    /// Its ID, as that store lists it.
    pub id: String,
    /// How the reference names it.
    pub match_kind: MatchKind,
}

/// Returns the images of an encoded `ListImagesResponse` that `reference` names, only those of the best kind
/// of match.
pub fn matching_images(list: &[u8], reference: &str) -> Vec<StoredImage> {
    let images = wire::items(list, LIST_ITEMS).map_while(Result::ok).filter_map(|image| {
        Some(StoredImage {
            match_kind: image_name::match_kind(image, reference)?,
            id: wire::peek_str(image, &[ITEM_ID]).ok()?.to_owned(),
        })
    });
    let mut images: Vec<_> = images.collect();
    if let Some(best) = images.iter().map(|image| image.match_kind).min() {
        images.retain(|image| image.match_kind == best);
    }
    images
}

/// Keeps, over all stores, only the matches of the best kind, and returns the rule for that kind; `None`
/// without a match.
///
/// # Errors
/// [`Error::Ambiguous`] if the reference is a prefix of several IDs.
pub fn keep_best_match(stores: &mut [Vec<StoredImage>], reference: &str) -> Result<Option<Rule>, Error> {
    let Some(best) = stores.iter().flatten().map(|image| image.match_kind).min() else { return Ok(None) };
    for images in &mut *stores {
        images.retain(|image| image.match_kind == best);
    }
    let ids: BTreeSet<_> = stores.iter().flatten().map(|image| bare_id(&image.id)).collect();
    if best == MatchKind::IdPrefix && ids.len() > 1 {
        return Err(Error::Ambiguous { kind: "image", prefix: reference.to_owned() });
    }
    Ok(Some(match best {
        MatchKind::Id => Rule::RemoveId,
        MatchKind::OtherSpelling => Rule::RemoveOtherSpelling,
        MatchKind::Name => Rule::RemoveName,
        MatchKind::IdPrefix => Rule::RemovePrefix,
    }))
}
