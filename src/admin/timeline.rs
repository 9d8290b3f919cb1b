//! The last hour of each backend's state, as a bar on the status page and in words.
//!
//! States are looked at once a second, so a shorter outage may be missing here; counters have it.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use maud::{Markup, html};

use crate::admin::duration;
use crate::backend::Link;
use crate::history::{STATES_KEPT, StateChange};
use crate::proxy::Node;

/// How often the states are looked at.
const EVERY: Duration = Duration::from_secs(1);
/// How many changes stand beside the bar in words.
const IN_WORDS: usize = 4;

/// Records the states of all backends. Never completes.
pub(super) async fn record(node: Arc<Node>) {
    let mut tick = tokio::time::interval(EVERY);
    loop {
        tick.tick().await;
        let backends = node.backends();
        let states: Vec<_> = backends
            .iter()
            .map(|backend| {
                let is_known = !matches!(backend.link(), Link::Connecting);
                (&*backend.name, is_known.then(|| node.condition_of(backend).word()))
            })
            .collect();
        node.history.record_states(SystemTime::now(), &states);
    }
}

/// Draws the hour of every backend.
pub(super) fn section(node: &Node, caption: &Markup) -> Markup {
    let now = SystemTime::now();
    html! {
        section {
            h2 { "Last hour" }
            div.scroll { table {
                (caption)
                thead { tr { th scope="col" { "Backend" } th scope="col" { "State" } th scope="col" { "Last changes" } } }
                tbody { @for backend in node.backends().iter() { (row(&backend.name, &node.history.states(&backend.name), now)) } }
            } }
        }
    }
}

fn row(backend: &str, changes: &[StateChange], now: SystemTime) -> Markup {
    let words: Vec<_> = changes.iter().rev().take(IN_WORDS).map(words).collect();
    html! {
        tr {
            th scope="row" { (backend) }
            td.wide { div.timeline aria-hidden="true" {
                @for piece in pieces(changes, now) {
                    span.(piece.state) style=(format!("width:{:.2}%", piece.percent)) title=(piece.state) {}
                }
            } }
            td { (words.join(", ")) }
        }
    }
}

/// Says in words since when a backend is in a state.
fn words(change: &StateChange) -> String {
    let moment = duration::rfc3339(change.at);
    let clock = moment.split_once('T').map_or("", |(_, clock)| clock.trim_end_matches('Z'));
    format!("{} {clock}", change.state)
}

/// A part of the bar.
#[derive(Debug, PartialEq)]
struct BarPiece {
    state: &'static str,
    percent: f64,
}

/// Divides the hour before `now`.
fn pieces(changes: &[StateChange], now: SystemTime) -> Vec<BarPiece> {
    let begin = now.checked_sub(STATES_KEPT).unwrap_or(SystemTime::UNIX_EPOCH);
    let percent = |from: SystemTime, to: SystemTime| {
        let part = to.duration_since(from.max(begin)).unwrap_or_default();
        100.0 * part.as_secs_f64() / STATES_KEPT.as_secs_f64()
    };
    let ends = changes.iter().skip(1).map(|change| change.at).chain([now]);
    let known = std::iter::zip(changes, ends)
        .map(|(change, end)| BarPiece { state: change.state, percent: percent(change.at, end) });
    let blank = changes.first().map_or(100.0, |first| percent(begin, first.at));
    let all = std::iter::once(BarPiece { state: "blank", percent: blank }).chain(known);
    all.filter(|piece| piece.percent > 0.0).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bar_divides_the_hour() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(100_000);
        let ago = |minutes: u64, state| StateChange { at: now - Duration::from_secs(minutes * 60), state };
        let shown = |changes: &[StateChange]| -> Vec<_> {
            let pieces = pieces(changes, now).into_iter();
            pieces.map(|piece| (piece.state, format!("{:.1}", piece.percent))).collect()
        };
        assert_eq!(shown(&[]), [("blank", "100.0".to_owned())]);
        let started = [ago(30, "ready"), ago(15, "down"), ago(9, "ready")];
        let expected = [("blank", "50.0"), ("ready", "25.0"), ("down", "10.0"), ("ready", "15.0")];
        assert_eq!(shown(&started), expected.map(|(state, percent)| (state, percent.to_owned())));
        let older = [ago(90, "ready"), ago(6, "late")];
        assert_eq!(shown(&older), [("ready", "90.0".to_owned()), ("late", "10.0".to_owned())]);
    }
}
