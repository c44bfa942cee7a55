//! From a configuration as it is written in `bench/peers/` to the one that a program reads.
//!
//! - `@name@` stands for a value;
//! - a line that ends in `@only WORD ...@` is there if one of the words holds for the scenario, or all of `WORD+WORD`;
//! - lines between `@each service@` and `@end@` are there once for each configured service, with its number for `@n@`.

use anyhow::{Context, bail};

/// What is put in.
#[derive(Clone, Debug, Default)]
pub struct Values {
    /// Values by name.
    pub names: Vec<(&'static str, String)>,
    /// Words that hold.
    pub words: Vec<String>,
    /// Services.
    pub services: usize,
}

/// Fills a template.
///
/// # Errors
/// If something in it has no value.
pub fn fill(template: &str, values: &Values) -> anyhow::Result<String> {
    let mut text = String::with_capacity(template.len());
    let mut lines = template.lines();
    while let Some(line) = lines.next() {
        if !line.contains("@each service@") {
            add(&mut text, line, values)?;
            continue;
        }
        let block: Vec<&str> = lines.by_ref().take_while(|line| !line.contains("@end@")).collect();
        for n in 0..values.services {
            for line in &block {
                add(&mut text, &line.replace("@n@", &n.to_string()), values)?;
            }
        }
    }
    Ok(text)
}

fn add(text: &mut String, line: &str, values: &Values) -> anyhow::Result<()> {
    let (line, words) = match line.split_once("@only ") {
        None => (line, None),
        Some((line, words)) => (line.trim_end(), Some(words.strip_suffix('@').context("`@only` ends with `@`")?)),
    };
    let known = |word: &str| values.words.iter().any(|known| known == word);
    let holds = |words: &str| words.split_whitespace().any(|together| together.split('+').all(known));
    if !words.is_none_or(holds) {
        return Ok(());
    }
    let mut line = line.to_owned();
    for (name, value) in &values.names {
        line = line.replace(&format!("@{name}@"), value);
    }
    if let Some(name) = left(&line) {
        bail!("nothing is known to put in for `@{name}@`");
    }
    text.push_str(&line);
    text.push('\n');
    Ok(())
}

/// A name that is still there.
fn left(line: &str) -> Option<&str> {
    let is_name = |part: &&str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_');
    // Only what is between two of them.
    let parts: Vec<&str> = line.split('@').collect();
    parts.get(1..parts.len().saturating_sub(1))?.iter().copied().find(|part| is_name(part))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(template: &str, expected: Result<&str, &str>) {
        let values = Values {
            names: vec![("listen", "127.0.0.1:80".to_owned())],
            words: vec!["tls".to_owned(), "policy".to_owned()],
            services: 2,
        };
        let filled = fill(template, &values).map_err(|error| error.to_string());
        match expected {
            Ok(text) => assert_eq!(filled.as_deref(), Ok(text)),
            Err(text) => assert!(filled.as_ref().is_err_and(|error| error.contains(text)), "{filled:?}"),
        }
    }

    #[test]
    fn values_words_and_services_are_put_in() {
        check("bind @listen@\n", Ok("bind 127.0.0.1:80\n"));
        check("a @only tls+plain@\nb @only tls+policy@\n", Ok("b\n"));
        check("a    @only plain@\nb @only plain tls@\n", Ok("b\n"));
        check("# @each service@\ns@n@ @listen@\n# @end@\nend\n", Ok("s0 127.0.0.1:80\ns1 127.0.0.1:80\nend\n"));
        check("\"@type\": a@b\n", Ok("\"@type\": a@b\n"));
    }

    #[test]
    fn a_name_without_a_value_is_an_error_that_says_it() {
        check("bind @lisnte@\n", Err("@lisnte@"));
    }
}
