//! What the files say together: which of them an object belongs to, and what changed since they were last read.
//!
//! Of each object only a hash is kept. When two files have the same object, the first by name counts; when that one
//! lets go of it, the other is read again.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::derive::Derive;
use super::document::{self, Content, Fault, Object};
use crate::cluster::{Change, Event, Kind, Name};
use crate::issue::{Issue, ObjectRef};
use crate::watch::{Watched, read};

/// The directory as it was last read.
#[derive(Debug)]
pub struct Directory {
    path: PathBuf,
    node: Arc<str>,
    files: BTreeMap<OsString, File>,
    objects: BTreeMap<Key, Held>,
    derive: Derive,
    /// Objects whose issues were told.
    with_issues: BTreeSet<ObjectRef>,
}

/// Kind and name of an object.
type Key = (Kind, Name);

#[derive(Debug, Default)]
struct File {
    stamp: Option<Stamp>,
    keys: BTreeSet<Key>,
    /// Places whose issues were told.
    issues: BTreeSet<ObjectRef>,
}

/// Tells versions of a file apart: inode, size, time of modification.
type Stamp = (u64, u64, i64, i64);

#[derive(Debug)]
struct Held {
    /// Of what was told; `None` when the file it belongs to has not been read since it does.
    hash: Option<u64>,
    file: OsString,
    /// Other files with the same object.
    also: BTreeSet<OsString>,
}

/// Whose an object is.
enum Claim {
    /// The file's that claims it, and it says something new.
    Changed,
    /// The same, and it says what it said before.
    Same,
    /// Another file's, with this path.
    Of(String),
}

impl Directory {
    /// Nothing has been read yet; `node` is the name of this node.
    pub fn new(path: &Path, node: &str) -> Self {
        Self {
            path: path.to_owned(),
            node: node.into(),
            files: BTreeMap::new(),
            objects: BTreeMap::new(),
            derive: Derive::default(),
            with_issues: BTreeSet::new(),
        }
    }

    /// Number of files.
    pub fn n_files(&self) -> usize {
        self.files.len()
    }

    /// Reads what changed since the last time, and at any rate the files with these names; returns what is new.
    ///
    /// # Errors
    /// When the directory cannot be listed. A file that cannot be read is an issue.
    pub fn refresh(&mut self, names: &BTreeSet<OsString>) -> io::Result<Vec<Event>> {
        let listed = list(&self.path)?;
        let gone: Vec<_> =
            self.files.keys().filter(|name| !listed.contains_key(*name)).cloned().collect();
        let mut events = Vec::new();
        let mut again = BTreeSet::new();
        for name in gone {
            self.put_file(&name, Content::default(), &mut again, &mut events);
            self.files.remove(&name);
        }
        for (name, stamp) in &listed {
            let known = self.files.get(name).is_some_and(|file| file.stamp == Some(*stamp));
            if !known || names.contains(name) {
                again.insert(name.clone());
            }
        }
        // A file that takes over or loses objects can make others worth a second look, but only once each.
        let mut rest = again.clone();
        let mut rounds = 0;
        while let Some(name) = rest.pop_first() {
            let Some(stamp) = listed.get(&name) else { continue };
            let mut more = BTreeSet::new();
            self.read_file(&name, *stamp, &mut more, &mut events);
            more.remove(&name);
            rounds += 1;
            if rounds <= listed.len().saturating_mul(2) {
                rest.extend(more);
            }
        }
        self.derive.flush(&mut events);
        Ok(events)
    }

    fn read_file(
        &mut self,
        name: &OsString,
        stamp: Stamp,
        again: &mut BTreeSet<OsString>,
        events: &mut Vec<Event>,
    ) {
        let content = match fs::read(self.path.join(name)).map(String::from_utf8) {
            Ok(Ok(text)) => document::parse(&text),
            Ok(Err(err)) => {
                let valid = err.as_bytes().get(..err.utf8_error().valid_up_to());
                let lines = valid.map_or(0, |valid| valid.iter().filter(|b| **b == b'\n').count());
                unreadable(lines as u64 + 1, "is not UTF-8".to_owned())
            }
            // It went away since it was listed: the next round sees that.
            Err(err) if err.kind() == io::ErrorKind::NotFound => return,
            Err(err) => unreadable(1, format!("cannot be read: {err}")),
        };
        self.put_file(name, content, again, events);
        if let Some(file) = self.files.get_mut(name) {
            file.stamp = Some(stamp);
        }
    }

    /// Makes the content of one file count. `again` gets the files that must be read because of it.
    fn put_file(
        &mut self,
        name: &OsString,
        content: Content,
        again: &mut BTreeSet<OsString>,
        events: &mut Vec<Event>,
    ) {
        let Content { found, mut faults } = content;
        // While a part of it cannot be read, what the file said before goes on holding.
        let keep = faults.iter().any(|fault| fault.lossy);
        let before = self.files.entry(name.clone()).or_default().keys.clone();
        let mut lines: BTreeMap<Key, u64> = BTreeMap::new();
        for found in found {
            let key = (found.object.kind(), found.object.name());
            if let Some(line) = lines.get(&key) {
                faults.push(duplicate(found.line, &key, &format!("line {line} of this file")));
                continue;
            }
            lines.insert(key.clone(), found.line);
            match self.claim(&key, name, found.hash, again) {
                Claim::Changed => self.put_object(&found.object, events),
                Claim::Same => {}
                Claim::Of(owner) => faults.push(duplicate(found.line, &key, &owner)),
            }
        }
        let mut keys: BTreeSet<Key> = lines.into_keys().collect();
        for key in before {
            if keep {
                keys.insert(key);
            } else if !keys.contains(&key) {
                self.let_go(&key, name, again, events);
            }
        }
        self.tell_faults(name, keys, faults, events);
    }

    /// Notes that this file has the object with this hash.
    fn claim(
        &mut self,
        key: &Key,
        file: &OsString,
        hash: u64,
        again: &mut BTreeSet<OsString>,
    ) -> Claim {
        let Some(held) = self.objects.get_mut(key) else {
            let held = Held { hash: Some(hash), file: file.clone(), also: BTreeSet::new() };
            self.objects.insert(key.clone(), held);
            return Claim::Changed;
        };
        if held.file < *file {
            held.also.insert(file.clone());
            return Claim::Of(self.path.join(&held.file).display().to_string());
        }
        if held.file != *file {
            let other = std::mem::replace(&mut held.file, file.clone());
            held.also.remove(file);
            held.also.insert(other.clone());
            again.insert(other);
        }
        if held.hash.replace(hash) == Some(hash) { Claim::Same } else { Claim::Changed }
    }

    fn let_go(
        &mut self,
        key: &Key,
        file: &OsString,
        again: &mut BTreeSet<OsString>,
        events: &mut Vec<Event>,
    ) {
        let Some(held) = self.objects.get_mut(key) else { return };
        if held.file != *file {
            held.also.remove(file);
            return;
        }
        if let Some(next) = held.also.pop_first() {
            held.file = next.clone();
            held.hash = None;
            again.insert(next);
            return;
        }
        self.objects.remove(key);
        self.remove_object(key, events);
    }

    fn put_object(&mut self, object: &Object, events: &mut Vec<Event>) {
        let (event, issues) = match object {
            Object::Service(service) => {
                self.derive.put_service(service);
                read(service.as_ref())
            }
            Object::Slice(slice) => {
                self.derive.put_slice(slice);
                read(slice.as_ref())
            }
            Object::Pod(pod) => {
                self.derive.put_pod(pod);
                let node = pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref());
                if node.is_some_and(|node| *node != *self.node) {
                    (Event::Pod(Change::Deleted(pod.name())), Vec::new())
                } else {
                    read(pod.as_ref())
                }
            }
            Object::Namespace(namespace) => read(namespace.as_ref()),
            Object::Node(node) => {
                self.derive.put_node(node);
                read(node.as_ref())
            }
        };
        events.push(event);
        let object = ObjectRef::new(object.kind().name(), &object.name());
        let changed = if issues.is_empty() {
            self.with_issues.remove(&object)
        } else {
            self.with_issues.insert(object.clone());
            true
        };
        if changed {
            events.push(Event::Issues(object, issues));
        }
    }

    fn remove_object(&mut self, (kind, name): &Key, events: &mut Vec<Event>) {
        self.derive.remove(*kind, name);
        let deleted = name.clone();
        events.push(match kind {
            Kind::Service => Event::Service(Change::Deleted(deleted)),
            Kind::EndpointSlice => Event::Slice(Change::Deleted(deleted)),
            Kind::Pod => Event::Pod(Change::Deleted(deleted)),
            Kind::Namespace => Event::Namespace(Change::Deleted(deleted)),
            Kind::Node => Event::Node(Change::Deleted(deleted)),
        });
        let object = ObjectRef::new(kind.name(), name);
        if self.with_issues.remove(&object) {
            events.push(Event::Issues(object, Vec::new()));
        }
    }

    fn tell_faults(
        &mut self,
        name: &OsString,
        keys: BTreeSet<Key>,
        faults: Vec<Fault>,
        events: &mut Vec<Event>,
    ) {
        let path = self.path.join(name).display().to_string();
        let mut issues: BTreeMap<ObjectRef, Vec<Issue>> = BTreeMap::new();
        for fault in faults {
            let object = ObjectRef::file(&path, fault.line);
            let issue = Issue::new(object.clone(), fault.field, fault.message);
            issues.entry(object).or_default().push(issue);
        }
        let Some(file) = self.files.get_mut(name) else { return };
        file.keys = keys;
        let told = std::mem::replace(&mut file.issues, issues.keys().cloned().collect());
        for object in told.difference(&file.issues) {
            events.push(Event::Issues(object.clone(), Vec::new()));
        }
        events.extend(issues.into_iter().map(|(object, issues)| Event::Issues(object, issues)));
    }
}

/// The manifest files and their versions.
fn list(path: &Path) -> io::Result<BTreeMap<OsString, Stamp>> {
    let mut files = BTreeMap::new();
    for entry in fs::read_dir(path)? {
        let name = entry?.file_name();
        let extension = Path::new(&name).extension().and_then(|extension| extension.to_str());
        let is_manifest = matches!(extension, Some("yaml" | "yml" | "json"));
        if !is_manifest || name.as_encoded_bytes().starts_with(b".") {
            continue;
        }
        // Follows links, as a mounted ConfigMap consists of them; a broken one is no file.
        let Ok(meta) = fs::metadata(path.join(&name)) else { continue };
        if meta.is_file() {
            files.insert(name, (meta.ino(), meta.size(), meta.mtime(), meta.mtime_nsec()));
        }
    }
    Ok(files)
}

fn unreadable(line: u64, message: String) -> Content {
    let fault = Fault { line, field: String::new(), message, lossy: true };
    Content { found: Vec::new(), faults: vec![fault] }
}

fn duplicate(line: u64, (kind, name): &Key, owner: &str) -> Fault {
    let message = format!("{} {name} is in {owner} already: skipped", kind.name());
    Fault { line, field: "metadata.name".to_owned(), message, lossy: false }
}
