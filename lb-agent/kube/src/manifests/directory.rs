//! What the files say together: which of them an object belongs to, and what changed since they were last read.
//!
//! Of each object only a hash is kept. When two files have the same object, the first by name counts; when that one
//! lets go of it, the other is read again.
#![forbid(unsafe_code)]

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::derive::Derive;
use super::document::{self, DocumentError, Object, ParsedObject};
use lb_core::cluster::{Event, Kind, Name};
use lb_core::issue::{Issue, ObjectRef};

/// The directory as it was last read.
#[derive(Debug)]
pub struct ManifestDirectory {
    path: PathBuf,
    node: Arc<str>,
    files: BTreeMap<OsString, ManifestFile>,
    objects: BTreeMap<ObjectKey, Held>,
    derive: Derive,
    /// Objects whose issues were told.
    with_issues: BTreeSet<ObjectRef>,
    /// Number of files read so far.
    readings: u32,
    /// All namespaces ever seen: few, and each is short.
    namespaces: HashSet<Arc<str>>,
}

/// Kind and name of an object.
type ObjectKey = (Kind, Name);

#[derive(Debug, Default)]
struct ManifestFile {
    stamp: Option<Stamp>,
    /// Places whose issues were told.
    issues: BTreeSet<ObjectRef>,
}

/// Tells versions of a file apart: inode, size, time of modification.
type Stamp = (u64, u64, i64, i64);

#[derive(Debug)]
struct Held {
    /// Of what was told; `None` when the file it belongs to has not been read since it does.
    hash: Option<u64>,
    file: Arc<OsStr>,
    /// Number of the reading that found it in `file` last, and the line there.
    reading: u32,
    line: u32,
    /// Other files with the same object, and the readings that found it there.
    also: BTreeMap<Arc<OsStr>, u32>,
}

/// Whose an object is.
enum Ownership {
    /// The file's that claims it, and it says something new.
    Changed,
    /// The same, and it says what it said before.
    Same,
    /// Defined in another place: that place.
    Of(String),
}

/// What reading files leads to.
struct ReadResult<'a> {
    tell: &'a mut dyn FnMut(Event),
    /// Files that must be read because of it.
    again: BTreeSet<OsString>,
}

impl ManifestDirectory {
    /// Nothing has been read yet; `node` is the name of this node.
    pub fn new(path: &Path, node: &str) -> Self {
        Self {
            path: path.to_owned(),
            node: node.into(),
            files: BTreeMap::new(),
            objects: BTreeMap::new(),
            derive: Derive::default(),
            with_issues: BTreeSet::new(),
            readings: 0,
            namespaces: HashSet::new(),
        }
    }

    /// Number of files.
    pub fn n_files(&self) -> usize {
        self.files.len()
    }

    /// Reads what changed since the last time, and at any rate the files with these names; tells what is new.
    ///
    /// # Errors
    /// When the directory cannot be listed. A file that cannot be read is an issue.
    pub fn refresh(
        &mut self,
        names: &BTreeSet<OsString>,
        tell: &mut dyn FnMut(Event),
    ) -> io::Result<()> {
        let listed = list(&self.path)?;
        let first = self.objects.is_empty();
        let gone: Vec<_> =
            self.files.keys().filter(|name| !listed.contains_key(*name)).cloned().collect();
        let mut outcome = ReadResult { tell, again: BTreeSet::new() };
        for name in gone {
            self.take_file(&name, Ok(""), &mut outcome);
            self.files.remove(&name);
        }
        for (name, stamp) in &listed {
            let known = self.files.get(name).is_some_and(|file| file.stamp == Some(*stamp));
            if !known || names.contains(name) {
                outcome.again.insert(name.clone());
            }
        }
        // A file that takes over or loses objects makes others worth a second look; that ends, since objects only
        // go to the first file by name that has them. The bound is for files that change meanwhile.
        for _ in 0..listed.len().saturating_mul(2) {
            let Some(name) = outcome.again.pop_first() else { break };
            if let Some(stamp) = listed.get(&name) {
                self.read_file(&name, *stamp, &mut outcome);
            }
        }
        self.derive.flush(outcome.tell);
        if first {
            // A tree that has grown in order is little more than half full; one that is made of a list is packed.
            self.objects = std::mem::take(&mut self.objects).into_iter().collect();
        }
        Ok(())
    }

    fn read_file(&mut self, name: &OsString, stamp: Stamp, outcome: &mut ReadResult<'_>) {
        let unreadable = |line: usize, message: String| {
            let line = u64::try_from(line).unwrap_or(u64::MAX);
            DocumentError { line, field: String::new(), message, lossy: true }
        };
        match fs::read(self.path.join(name)).map(String::from_utf8) {
            Ok(Ok(text)) => self.take_file(name, Ok(&text), outcome),
            Ok(Err(err)) => {
                let valid = err.as_bytes().get(..err.utf8_error().valid_up_to());
                let lines = valid.map_or(0, |valid| valid.iter().filter(|b| **b == b'\n').count());
                let fault = unreadable(lines + 1, "is not UTF-8".to_owned());
                self.take_file(name, Err(fault), outcome);
            }
            // It went away since it was listed: the next round sees that.
            Err(err) if err.kind() == io::ErrorKind::NotFound => return,
            Err(err) => {
                let fault = unreadable(1, format!("cannot be read: {err}"));
                self.take_file(name, Err(fault), outcome);
            }
        }
        if let Some(file) = self.files.get_mut(name) {
            file.stamp = Some(stamp);
        }
    }

    /// Makes the content of one file count.
    fn take_file(
        &mut self,
        name: &OsString,
        text: Result<&str, DocumentError>,
        outcome: &mut ReadResult<'_>,
    ) {
        self.readings += 1;
        let file: Arc<OsStr> = name.as_os_str().into();
        let known = self.files.contains_key(name);
        let mut duplicates = Vec::new();
        let mut faults = match text {
            Ok(text) => document::parse(text, &mut |found| {
                let name = self.name(&*found.object);
                match self.claim(&file, &found, name.clone(), outcome) {
                    Ownership::Changed => self.put_object(&*found.object, name, outcome.tell),
                    Ownership::Same => {}
                    Ownership::Of(owner) => duplicates.push(duplicate(&found, &owner)),
                }
            }),
            Err(fault) => vec![fault],
        };
        // While a part of it cannot be read, what the file said before goes on holding.
        if known && !faults.iter().any(|fault| fault.lossy) {
            self.let_go(&file, outcome);
        }
        faults.append(&mut duplicates);
        self.tell_faults(name, faults, outcome.tell);
    }

    /// The name of an object; the namespace is one string for all of them, and the name one for all that keep it.
    fn name(&mut self, object: &dyn Object) -> Name {
        let mut name = object.name();
        match self.namespaces.get(&name.namespace) {
            Some(known) => name.namespace = Arc::clone(known),
            None => drop(self.namespaces.insert(Arc::clone(&name.namespace))),
        }
        name
    }

    /// Notes that this file has the object.
    fn claim(
        &mut self,
        file: &Arc<OsStr>,
        found: &ParsedObject,
        name: Name,
        outcome: &mut ReadResult<'_>,
    ) -> Ownership {
        let reading = self.readings;
        let line = u32::try_from(found.line).unwrap_or(u32::MAX);
        let key = (found.object.kind(), name);
        let held = match self.objects.entry(key) {
            Entry::Vacant(entry) => {
                let (hash, file) = (Some(found.hash), Arc::clone(file));
                entry.insert(Held { hash, file, reading, line, also: BTreeMap::new() });
                return Ownership::Changed;
            }
            Entry::Occupied(entry) => entry.into_mut(),
        };
        if held.file < *file {
            held.also.insert(Arc::clone(file), reading);
            return Ownership::Of(self.path.join(&*held.file).display().to_string());
        }
        if held.file == *file && held.reading == reading {
            return Ownership::Of(format!("line {} of this file", held.line));
        }
        if held.file != *file {
            let other = std::mem::replace(&mut held.file, Arc::clone(file));
            outcome.again.insert(other.to_os_string());
            held.also.remove(file);
            held.also.insert(other, held.reading);
        }
        (held.reading, held.line) = (reading, line);
        if held.hash.replace(found.hash) == Some(found.hash) {
            Ownership::Same
        } else {
            Ownership::Changed
        }
    }

    /// Lets go of the objects that this reading did not find in the file any more.
    fn let_go(&mut self, file: &Arc<OsStr>, outcome: &mut ReadResult<'_>) {
        let reading = self.readings;
        let mut removed = Vec::new();
        for (key, held) in &mut self.objects {
            held.also.retain(|other, seen| other != file || *seen == reading);
            if held.file != *file || held.reading == reading {
                continue;
            }
            if let Some((next, seen)) = held.also.pop_first() {
                outcome.again.insert(next.to_os_string());
                (held.file, held.reading, held.hash) = (next, seen, None);
            } else {
                removed.push(key.clone());
            }
        }
        for key in removed {
            self.objects.remove(&key);
            self.remove_object(&key, outcome.tell);
        }
    }

    fn put_object(&mut self, object: &dyn Object, name: Name, tell: &mut dyn FnMut(Event)) {
        let about = ObjectRef::new(object.kind().name(), &name);
        self.derive.put(object, &name);
        let (event, issues) = object.read(name, &self.node);
        tell(event);
        let changed = if issues.is_empty() {
            self.with_issues.remove(&about)
        } else {
            self.with_issues.insert(about.clone());
            true
        };
        if changed {
            tell(Event::Issues(about, issues));
        }
    }

    fn remove_object(&mut self, (kind, name): &ObjectKey, tell: &mut dyn FnMut(Event)) {
        self.derive.remove(*kind, name);
        document::deletion(*kind, name).into_iter().for_each(&mut *tell);
        let object = ObjectRef::new(kind.name(), name);
        if self.with_issues.remove(&object) {
            tell(Event::Issues(object, Vec::new()));
        }
    }

    fn tell_faults(
        &mut self,
        name: &OsString,
        faults: Vec<DocumentError>,
        tell: &mut dyn FnMut(Event),
    ) {
        let path = self.path.join(name).display().to_string();
        let mut issues: BTreeMap<ObjectRef, Vec<Issue>> = BTreeMap::new();
        for fault in faults {
            let object = ObjectRef::file(&path, fault.line);
            let issue = Issue::new(object.clone(), fault.field, fault.message);
            issues.entry(object).or_default().push(issue);
        }
        let file = self.files.entry(name.clone()).or_default();
        let reported = std::mem::replace(&mut file.issues, issues.keys().cloned().collect());
        for object in reported.difference(&file.issues) {
            tell(Event::Issues(object.clone(), Vec::new()));
        }
        issues.into_iter().for_each(|(object, issues)| tell(Event::Issues(object, issues)));
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
        // Follows links, as a mounted ConfigMap consists of them; a broken link is skipped.
        let Ok(meta) = fs::metadata(path.join(&name)) else { continue };
        if meta.is_file() {
            files.insert(name, (meta.ino(), meta.size(), meta.mtime(), meta.mtime_nsec()));
        }
    }
    Ok(files)
}

fn duplicate(found: &ParsedObject, owner: &str) -> DocumentError {
    let (kind, name) = (found.object.kind().name(), found.object.name());
    let message = format!("{kind} {name} is already defined in {owner}: skipped");
    DocumentError { line: found.line, field: "metadata.name".to_owned(), message, lossy: false }
}
