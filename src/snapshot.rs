//! stub
#![allow(missing_docs, dead_code, unused, clippy::pedantic)]
use std::sync::Arc;
use std::path::Path;
use std::time::Duration;
use bytes::Bytes;
use crate::wire::{self, WireError};
use crate::method::{List, Kind};
#[derive(Debug, Clone, Copy)] pub struct Epoch(u64);
#[derive(Debug, Clone, Copy, PartialEq)] pub enum ListKind { Sandboxes, Containers, Images, ContainerStats, PodSandboxStats }
#[derive(Debug)] pub struct Filter { id: Option<String>, sandbox: Option<String>, empty: bool }
impl Filter {
  pub fn parse(list: List, request: &[u8]) -> Result<Self, WireError> { let id = wire::peek_str(request,&[1,1]).unwrap_or_default().to_owned(); Ok(Self{ empty: wire::peek_bytes(request,&[1])?.unwrap_or_default().is_empty(), id: Some(id).filter(|s|!s.is_empty()), sandbox: None}) }
  pub fn is_empty(&self) -> bool { self.empty }
  pub fn id(&self) -> Option<&str> { self.id.as_deref() }
  pub fn sandbox_id(&self) -> Option<&str> { self.sandbox.as_deref() }
}
#[derive(Debug)] pub struct SandboxFacts<'a> { pub id: &'a str, pub uid: &'a str, pub runtime_handler: &'a str, pub created_at: i64, pub ready: bool }
impl<'a> SandboxFacts<'a> { pub fn read(item: &'a [u8]) -> Result<Self, WireError> { Ok(Self{id: wire::peek_str(item,&[1])?, uid: wire::peek_str(item,&[2,2])?, runtime_handler: wire::peek_str(item,&[7])?, created_at:0, ready:true}) }
 pub fn annotations(&self) -> impl Iterator<Item=(&'a str,&'a str)> { std::iter::empty() } }
#[derive(Debug)] pub struct ContainerFacts<'a> { pub id: &'a str }
#[derive(Debug, Default)] pub struct LastKnown { replies: std::sync::Mutex<std::collections::HashMap<String, Bytes>> }
impl LastKnown {
 pub fn epoch(&self) -> Epoch { Epoch(0) }
 pub fn replace_list(&self, k: ListKind, e: Epoch, r: Bytes) { self.replies.lock().unwrap().insert(format!("{k:?}"), r); }
 pub fn update_items(&self, k: ListKind, e: Epoch, r: Bytes) {}
 pub fn list(&self, k: ListKind, f: &Filter) -> Option<Bytes> { self.replies.lock().unwrap().get(&format!("{k:?}")).cloned() }
 pub fn sandbox_created(&self, id: &str, r: &[u8]) {}
 pub fn container_created(&self, id: &str, s: &str, r: &[u8]) {}
 pub fn pod_restored(&self, id: &str, r: &[u8], c: &[(&str,&str)]) {}
 pub fn container_started(&self, id: &str) {}
 pub fn container_stopped(&self, id: &str) {}
 pub fn container_removed(&self, id: &str) {}
 pub fn sandbox_stopped(&self, id: &str) {}
 pub fn sandbox_removed(&self, id: &str) -> Vec<String> { vec![] }
 pub fn remember_status(&self, k: Kind, id: &str, e: Epoch, r: Bytes) {}
 pub fn drop_status(&self, id: &str) {}
 pub fn status(&self, k: Kind, id: &str) -> Option<Bytes> { None }
 pub fn remember_reply(&self, m: &'static str, r: Bytes) { self.replies.lock().unwrap().insert(m.into(), r); }
 pub fn reply(&self, m: &str) -> Option<Bytes> { self.replies.lock().unwrap().get(m).cloned() }
 pub fn drained(&self) -> bool { false }
 pub fn known(&self) -> bool { true }
 pub fn listed(&self) -> bool { true }
 pub fn age(&self) -> Option<Duration> { None }
 pub fn for_each_sandbox(&self, f: impl FnMut(&SandboxFacts<'_>)) {}
 pub fn for_each_container(&self, f: impl FnMut(&ContainerFacts<'_>)) {}
}
#[derive(Debug)] pub struct Snapshot;
impl Snapshot {
 pub fn open(p: &Path, b: &str) -> (Arc<Self>, Vec<String>) { (Arc::new(Self), vec![]) }
 pub async fn run(self: Arc<Self>, d: crate::drain::Drain) { d.begun().await }
 pub fn backend(&self, n: &str, l: bool) -> Arc<LastKnown> { Arc::default() }
 pub fn forget(&self, n: &str) {}
 pub fn is_fresh(&self) -> bool { true }
}
