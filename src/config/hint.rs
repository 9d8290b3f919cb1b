//! Suggestions for mistyped names.
//!
//! Bounded on purpose: a name longer than any real one, or the thousandth candidate, is not compared.

const LONGEST: usize = 64;
const MOST: usize = 200;

/// The candidate nearest to `name`, if any is near.
pub(super) fn nearest<'a>(name: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    if name.is_empty() || name.len() > LONGEST {
        return None;
    }
    let name = name.to_lowercase();
    let distance = |candidate: &str| strsim::damerau_levenshtein(&name, &candidate.to_lowercase());
    let near = candidates.into_iter().take(MOST).filter(|candidate| candidate.len() <= LONGEST);
    let (distance, nearest) = near.map(|candidate| (distance(candidate), candidate)).min()?;
    // A third of the letters may differ: "conect" is near, "ca" is not near "key".
    (distance * 3 <= name.len().max(nearest.len())).then_some(nearest)
}

/// `; did you mean …?`, to be put at the end of a sentence.
pub(super) fn did_you_mean<'a>(name: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<String> {
    nearest(name, candidates).map(|near| format!("; did you mean {near}?"))
}
