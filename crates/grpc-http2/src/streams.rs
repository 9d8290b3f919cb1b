//! The streams of a connection, in the order of their identifiers.
//!
//! Either side opens streams with rising identifiers (RFC 9113, section 5.1.1), so a new one is the last, and
//! the others are found by bisection: there is no hash that a peer could aim at, and a connection with one
//! stream has one comparison to make.

use crate::frame::StreamId;
use crate::stream::Stream;

/// How many places an idle connection keeps.
const MAX_IDLE_PLACES: usize = 1 << 10;

/// The streams that have not been dropped.
#[derive(Debug, Default)]
pub(crate) struct Streams(Vec<(StreamId, Box<Stream>)>);

impl Streams {
    /// Appends a stream, whose identifier is the highest so far.
    pub(crate) fn push(&mut self, id: StreamId, stream: Stream) {
        debug_assert!(self.0.last().is_none_or(|(last, _)| *last < id), "identifiers rise");
        self.0.push((id, Box::new(stream)));
    }

    pub(crate) fn get(&self, id: StreamId) -> Option<&Stream> {
        self.place(id).map(|place| &*self.0[place].1)
    }

    pub(crate) fn get_mut(&mut self, id: StreamId) -> Option<&mut Stream> {
        self.place(id).map(|place| &mut *self.0[place].1)
    }

    pub(crate) fn remove(&mut self, id: StreamId) -> Option<Box<Stream>> {
        let (_, stream) = self.0.remove(self.place(id)?);
        // An idle connection keeps no room for its busiest hour.
        if self.0.is_empty() && self.0.capacity() > MAX_IDLE_PLACES {
            self.0 = Vec::new();
        }
        Some(stream)
    }

    pub(crate) fn contains(&self, id: StreamId) -> bool {
        self.place(id).is_some()
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (StreamId, &Stream)> {
        self.0.iter().map(|(id, stream)| (*id, &**stream))
    }

    fn place(&self, id: StreamId) -> Option<usize> {
        self.0.binary_search_by_key(&id, |(id, _)| *id).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_are_found_and_removed_in_any_order() {
        let ids: Vec<StreamId> = (0..9).map(|number| StreamId::from_wire(2 * number + 1)).collect();
        let mut streams = Streams::default();
        for &id in &ids {
            streams.push(id, Stream::default());
        }
        for place in [4, 0, 8, 1, 7] {
            assert!(streams.remove(ids[place]).is_some() && streams.remove(ids[place]).is_none());
        }
        let left = [2, 3, 5, 6].map(|place: usize| ids[place]);
        assert_eq!(streams.iter().map(|(id, _)| id).collect::<Vec<_>>(), left);
        assert!(left.iter().all(|&id| streams.get_mut(id).is_some() && streams.contains(id)));
        assert!(streams.get(StreamId::from_wire(2)).is_none() && streams.get(ids[8].next()).is_none());
        assert_eq!((streams.len(), streams.is_empty()), (4, false));
    }
}
