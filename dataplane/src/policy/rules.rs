//! Allow rules in their order, found by what they name: what a look-up costs does not grow with the rules that cannot
//! match.

use ringmesh_model::snapshot::PathMatch;

use crate::route::path_matches;
use crate::tables::Map;

/// So many rules are looked at one by one: that is quicker than hashing the path.
const MAX_SCANNED: usize = 4;

/// Rules, by their numbers, of which the first that admits a request decides.
#[derive(Debug, Default)]
pub(super) struct List {
    /// Ascending.
    numbers: Vec<u32>,
    /// None while there are few.
    index: Option<Box<Index>>,
}

/// What one rule asks of a request.
#[derive(Debug)]
pub(super) struct Rule {
    /// `policy/rule`.
    pub(super) name: Box<str>,
    /// One of them, or any.
    pub(super) methods: Vec<String>,
    /// One of them, or any.
    pub(super) paths: Vec<PathMatch>,
}

type Paths = Map<Box<[u8]>, Methods>;

/// For each combination of path and method the first rule that names it: a later one never decides.
#[derive(Debug, Default)]
struct Index {
    /// Rules that name no path, and so admit also one that has no normal form.
    without_path: Methods,
    /// Rules for every path that has a normal form.
    every_path: Methods,
    exact: Paths,
    prefix: Paths,
    /// Lengths of the prefixes, ascending: the peer chooses how many slashes a path has, but not these.
    prefix_lengths: Vec<usize>,
}

/// Numbers of rules, by method.
#[derive(Debug, Default)]
struct Methods {
    /// The first that admits any method.
    any: Option<u32>,
    /// The first for each other method, in the order of their names.
    named: Vec<(Box<[u8]>, u32)>,
}

impl List {
    /// Adds a rule after all others.
    pub(super) fn push(&mut self, number: u32, rules: &[Rule]) {
        self.numbers.push(number);
        match &mut self.index {
            Some(index) => index.add(number, &rules[number as usize]),
            None if self.numbers.len() > MAX_SCANNED => {
                let mut index = Box::<Index>::default();
                self.numbers.iter().for_each(|number| index.add(*number, &rules[*number as usize]));
                self.index = Some(index);
            }
            None => {}
        }
    }

    /// The first rule that admits a request; `path` is its path in normal form, if it has one.
    pub(super) fn find<'a>(&self, rules: &'a [Rule], method: &[u8], path: Option<&[u8]>) -> Option<&'a Rule> {
        match &self.index {
            Some(index) => index.find(method, path).and_then(|number| rules.get(number as usize)),
            None => self.scan(rules, method, path),
        }
    }

    /// The first rule that names neither method nor path.
    pub(super) fn unconditional<'a>(&self, rules: &'a [Rule]) -> Option<&'a Rule> {
        match &self.index {
            Some(index) => index.without_path.any.and_then(|number| rules.get(number as usize)),
            None => self.of(rules).find(|rule| rule.methods.is_empty() && rule.paths.is_empty()),
        }
    }

    fn scan<'a>(&self, rules: &'a [Rule], method: &[u8], path: Option<&[u8]>) -> Option<&'a Rule> {
        self.of(rules).find(|rule| rule.admits(method, path))
    }

    fn of<'a>(&self, rules: &'a [Rule]) -> impl Iterator<Item = &'a Rule> {
        self.numbers.iter().filter_map(|number| rules.get(*number as usize))
    }
}

impl Rule {
    fn admits(&self, method: &[u8], path: Option<&[u8]>) -> bool {
        (self.methods.is_empty() || self.methods.iter().any(|allowed| allowed.as_bytes() == method))
            && (self.paths.is_empty()
                || path.is_some_and(|path| self.paths.iter().any(|wanted| path_matches(wanted, path))))
    }
}

impl Index {
    fn add(&mut self, number: u32, rule: &Rule) {
        if rule.paths.is_empty() {
            self.without_path.add(number, &rule.methods);
        }
        for path in &rule.paths {
            let methods = match path {
                PathMatch::Any => &mut self.every_path,
                PathMatch::Prefix(prefix) if prefix == "/" => &mut self.every_path,
                PathMatch::Exact(exact) => self.exact.entry(exact.as_bytes().into()).or_default(),
                PathMatch::Prefix(prefix) => {
                    if let Err(at) = self.prefix_lengths.binary_search(&prefix.len()) {
                        self.prefix_lengths.insert(at, prefix.len());
                    }
                    self.prefix.entry(prefix.as_bytes().into()).or_default()
                }
            };
            methods.add(number, &rule.methods);
        }
    }

    fn find(&self, method: &[u8], path: Option<&[u8]>) -> Option<u32> {
        let first = self.without_path.find(method);
        let Some(path) = path else { return first };
        let first = earlier(first, self.every_path.find(method));
        let mut first = earlier(first, self.exact.get(path).and_then(|methods| methods.find(method)));
        for &length in &self.prefix_lengths {
            if length > path.len() {
                break;
            }
            let (prefix, rest) = path.split_at(length);
            if rest.first().is_none_or(|next| *next == b'/') {
                first = earlier(first, self.prefix.get(prefix).and_then(|methods| methods.find(method)));
            }
        }
        first
    }
}

impl Methods {
    /// Rules are added in their order, so the first for a method stays.
    fn add(&mut self, number: u32, methods: &[String]) {
        if methods.is_empty() {
            self.any.get_or_insert(number);
        }
        for method in methods {
            if let Err(at) = self.position(method.as_bytes()) {
                self.named.insert(at, (method.as_bytes().into(), number));
            }
        }
    }

    fn find(&self, method: &[u8]) -> Option<u32> {
        let named = self.position(method).ok().map(|at| self.named[at].1);
        earlier(self.any, named)
    }

    fn position(&self, method: &[u8]) -> Result<usize, usize> {
        self.named.binary_search_by(|(name, _)| (**name).cmp(method))
    }
}

/// The lower of two numbers, where there are any.
fn earlier(one: Option<u32>, other: Option<u32>) -> Option<u32> {
    match (one, other) {
        (Some(one), Some(other)) => Some(one.min(other)),
        (found, None) | (None, found) => found,
    }
}

#[cfg(test)]
#[allow(clippy::disallowed_types, clippy::disallowed_methods, reason = "what proptest's macros are made of")]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Few words, so that rules and requests often meet.
    fn path() -> impl Strategy<Value = String> {
        let parts = prop::collection::vec(prop::sample::select(vec!["a", "b", "ab", ""]), 0..4);
        parts.prop_map(|parts| format!("/{}", parts.join("/")))
    }

    fn wanted() -> impl Strategy<Value = PathMatch> {
        prop_oneof![
            1 => Just(PathMatch::Any),
            1 => Just(PathMatch::Prefix("/".into())),
            4 => path().prop_map(PathMatch::Exact),
            4 => path().prop_map(PathMatch::Prefix),
        ]
    }

    fn method() -> impl Strategy<Value = &'static str> {
        prop::sample::select(vec!["GET", "POST", "PUT", "P"])
    }

    /// Rules, and a list of some of them.
    fn rules() -> impl Strategy<Value = (Vec<Rule>, List)> {
        let methods = prop::collection::vec(method().prop_map(str::to_owned), 0..3);
        let rule = (methods, prop::collection::vec(wanted(), 0..3), prop::bool::weighted(0.8));
        prop::collection::vec(rule, 0..20).prop_map(|all| {
            let (mut rules, mut list) = (Vec::new(), List::default());
            for (number, (methods, paths, listed)) in (0..).zip(all) {
                rules.push(Rule { name: number.to_string().into(), methods, paths });
                if listed {
                    list.push(number, &rules);
                }
            }
            (rules, list)
        })
    }

    fn name(rule: Option<&Rule>) -> Option<&str> {
        rule.map(|rule| &*rule.name)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        #[test]
        fn the_rule_that_decides_is_the_first_that_a_look_at_all_of_them_finds(
            (rules, list) in rules(),
            requests in prop::collection::vec((method(), prop::option::weighted(0.9, path())), 1..20),
        ) {
            for (method, path) in &requests {
                let path = path.as_deref().map(str::as_bytes);
                let found = list.find(&rules, method.as_bytes(), path);
                prop_assert_eq!(name(found), name(list.scan(&rules, method.as_bytes(), path)), "{} {:?}", method, path);
            }
            let plain = list.of(&rules).find(|rule| rule.methods.is_empty() && rule.paths.is_empty());
            prop_assert_eq!(name(list.unconditional(&rules)), name(plain));
        }
    }
}
