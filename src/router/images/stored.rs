//! Which images of the stores a reference names.

use std::collections::BTreeSet;

use crate::cri::{ITEM_ID, LIST_ITEMS};
use crate::error::Error;
use crate::router::images::Rule;
use crate::snapshot::image_name::{self, Named, bare_id};
use crate::wire;

/// An image that a reference names, in one store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredImage {
    /// Its ID, as that store lists it.
    pub id: String,
    /// How the reference names it.
    pub named: Named,
}

/// Returns the images of an encoded `ListImagesResponse` that `reference` names, the most certain matches
/// only.
pub fn stored(list: &[u8], reference: &str) -> Vec<StoredImage> {
    let images = wire::items(list, LIST_ITEMS).map_while(Result::ok).filter_map(|image| {
        Some(StoredImage {
            named: image_name::named(image, reference)?,
            id: wire::peek_str(image, &[ITEM_ID]).ok()?.to_owned(),
        })
    });
    let mut images: Vec<_> = images.collect();
    if let Some(best) = images.iter().map(|image| image.named).min() {
        images.retain(|image| image.named == best);
    }
    images
}

/// Keeps, over all stores, only the most certain matches of a reference, and returns the rule that they fall
/// under; `None` if there are none.
///
/// # Errors
/// [`Error::Ambiguous`] if the reference is a prefix of several IDs.
pub fn keep_best_match(stores: &mut [Vec<StoredImage>], reference: &str) -> Result<Option<Rule>, Error> {
    let Some(best) = stores.iter().flatten().map(|image| image.named).min() else { return Ok(None) };
    for images in &mut *stores {
        images.retain(|image| image.named == best);
    }
    let ids: BTreeSet<_> = stores.iter().flatten().map(|image| bare_id(&image.id)).collect();
    if best == Named::IdPrefix && ids.len() > 1 {
        return Err(Error::Ambiguous { kind: "image", prefix: reference.to_owned() });
    }
    Ok(Some(match best {
        Named::Id => Rule::RemoveId,
        Named::OtherSpelling => Rule::RemoveOtherSpelling,
        Named::Name => Rule::RemoveName,
        Named::IdPrefix => Rule::RemovePrefix,
    }))
}
