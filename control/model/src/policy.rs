//! `[[policy]]`: who may call a listener. What no rule allows is refused, as soon as one policy names the listener.

use crate::error::Located;
use crate::name::Name;
use crate::reader::{Field, FromField, Keys, Section};
use crate::route::{Path, methods};
use crate::snapshot::PathMatch;

/// Keys of `[[policy]]`.
pub const KEYS: Keys = Keys { path: "policy", header: "[[policy]]", names: &["name", "listener", "allow"] };

/// Keys of one rule of `allow`.
pub const ALLOW_KEYS: Keys =
    Keys { path: "policy.allow", header: "`allow` of a [[policy]]", names: &["name", "from", "methods", "paths"] };

/// `[[policy]]`.
#[derive(Clone, Debug, PartialEq)]
pub struct Policy {
    /// Unique name.
    pub name: Located<String>,
    /// The listener it guards.
    pub listener: Located<String>,
    /// What it allows. Empty: nothing.
    pub allow: Vec<Allow>,
}

/// One rule: all that it says must hold.
#[derive(Clone, Debug, PartialEq)]
pub struct Allow {
    /// Unique within the policy. None: its position.
    pub name: Option<Located<String>>,
    /// Identities as written; one of them. None: whoever the listener admits.
    pub from: Option<Located<Vec<Located<String>>>>,
    /// Methods; one of them. None: any.
    pub methods: Option<Located<Vec<String>>>,
    /// Paths; one of them. None: any.
    pub paths: Option<Located<Vec<PathMatch>>>,
}

impl Policy {
    pub(crate) fn read(section: &Section<'_>) -> Option<Self> {
        let name = section.required::<Located<Name>>("name", "name = \"only-web\"");
        let listener = section.required::<Located<Name>>("listener", "listener = \"inbound\"");
        let allow = section.required::<Rules>("allow", "allow = [{ from = [\"web\"] }]");
        Some(Self { name: Name::unwrap(name?), listener: Name::unwrap(listener?), allow: allow?.0 })
    }
}

struct Rules(Vec<Allow>);

impl FromField for Rules {
    fn from_field(field: &Field<'_>) -> Option<Self> {
        let Some(items) = field.items() else {
            field.refuse_type("a list of rules such as [{ from = [\"web\"] }]");
            return None;
        };
        Some(Self(items.iter().filter_map(Allow::from_field).collect()))
    }
}

/// Why an empty list is refused: a template that fills in nothing must not open the door.
const EMPTY_MEANS_ANY: &str = "that could mean nobody or everybody; leave the key out for any";

impl FromField for Allow {
    fn from_field(field: &Field<'_>) -> Option<Self> {
        let section = field.section(&ALLOW_KEYS, "a rule such as { from = [\"web\"], methods = [\"GET\"] }")?;
        let name = section.optional::<Located<Name>>("name").map(Name::unwrap);
        let from = section.field("from").and_then(|field| {
            let ids = field.expect_set("a list such as [\"web\"]", EMPTY_MEANS_ANY)?;
            Some(Located { value: ids, place: field.place() })
        });
        let methods =
            section.field("methods").and_then(|field| Some(Located { value: methods(&field)?, place: field.place() }));
        let paths = section.field("paths").and_then(|field| {
            let items = field.expect_items("a list such as [\"/charge\", \"/items/*\"]", EMPTY_MEANS_ANY)?;
            Some(Located { value: items.iter().filter_map(path).collect(), place: field.place() })
        });
        Some(Self { name, from, methods, paths })
    }
}

/// A path; one that ends in `/*` stands for what begins with it.
fn path(field: &Field<'_>) -> Option<PathMatch> {
    match field.text().and_then(|text| text.strip_suffix("/*")) {
        Some("") => Some(PathMatch::Prefix("/".to_owned())),
        Some(prefix) => Path::check(field, prefix).map(|path| PathMatch::Prefix(path.into_prefix())),
        None => Path::from_field(field).map(|path| PathMatch::Exact(path.0)),
    }
}
