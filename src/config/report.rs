//! Errors with the text they are about, for people and for tools.

use std::fmt;
use std::sync::Arc;

use onehop_filters::contract::ConfigError;

/// The files a configuration was read from.
#[derive(Clone, Debug, Default)]
pub struct Files(Arc<Vec<File>>);

/// One of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct File {
    /// As the user wrote it, or as found in a folder.
    pub name: String,
    /// Lossy if it is not UTF-8.
    pub text: String,
}

impl Files {
    /// In order of `Span::file`.
    #[must_use]
    pub fn new(files: Vec<File>) -> Self {
        Self(Arc::new(files))
    }
    /// In order of `Span::file`.
    #[must_use]
    pub fn list(&self) -> &[File] {
        &self.0
    }
    /// Errors found later (when a filter is built) in these files.
    #[must_use]
    pub fn report(&self, errors: Vec<ConfigError>) -> Report {
        Report { files: self.clone(), errors }
    }
}

/// Why a configuration was rejected. Never empty.
#[derive(Clone, Debug)]
pub struct Report {
    /// What was read.
    pub files: Files,
    /// By place.
    pub errors: Vec<ConfigError>,
}

impl Report {
    /// Orders errors by place and drops repeats.
    #[must_use]
    pub fn sorted(files: Files, mut errors: Vec<ConfigError>) -> Self {
        by_place(&mut errors);
        Self { files, errors }
    }
    /// For tools: a list of `{severity, file, line, column, message, help}`.
    #[must_use]
    pub fn to_json(&self) -> serde_json::Value {
        json(&self.files, "error", &self.errors)
    }
    /// One line each, for a log.
    #[must_use]
    pub fn lines(&self) -> Vec<String> {
        self.errors.iter().map(|e| headline(&self.files, "error", e)).collect()
    }
}

/// Orders by place and drops repeats.
pub(super) fn by_place(found: &mut Vec<ConfigError>) {
    found.sort_by_key(|e| e.span.map_or((u16::MAX, 0, 0), |s| (s.file, s.line, s.column)));
    found.dedup();
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&text(&self.files, "error", &self.errors))
    }
}

impl std::error::Error for Report {}

/// Errors or warnings with source lines and a caret under each place.
#[must_use]
pub fn text(files: &Files, severity: &str, found: &[ConfigError]) -> String {
    let mut out = String::new();
    for e in found {
        out += &headline(files, severity, e);
        out.push('\n');
        if let Some(span) = e.span
            && let Some(file) = files.0.get(usize::from(span.file))
            && let Some(line) = file.text.lines().nth((span.line as usize).saturating_sub(1))
        {
            let number = span.line.to_string();
            let gutter = " ".repeat(number.len());
            let (shown, caret) = window(line, (span.column as usize).saturating_sub(1));
            out += &format!("{gutter} |\n{number} | {shown}\n{gutter} | {caret}^\n");
        }
        if let Some(help) = &e.help {
            out += &format!("help: {help}\n");
        }
        out.push('\n');
    }
    out
}

/// The part of a line around a column, and what stands before the caret under it.
fn window(line: &str, column: usize) -> (String, String) {
    const WIDTH: usize = 160;
    let from = if column < WIDTH { 0 } else { column - WIDTH / 2 };
    let shown: String = line.chars().skip(from).take(WIDTH).collect();
    // A tab keeps its width under itself, so that the caret stands where the eye expects it.
    let lead = shown.chars().take(column - from).map(|c| if c == '\t' { '\t' } else { ' ' }).collect();
    (shown, lead)
}

/// See [`Report::to_json`].
#[must_use]
pub fn json(files: &Files, severity: &str, found: &[ConfigError]) -> serde_json::Value {
    let one = |e: &ConfigError| {
        let file = e.span.and_then(|s| files.0.get(usize::from(s.file))).map(|f| f.name.as_str());
        serde_json::json!({
            "severity": severity,
            "file": file,
            "line": e.span.map(|s| s.line),
            "column": e.span.map(|s| s.column),
            "message": e.message,
            "help": e.help,
        })
    };
    found.iter().map(one).collect()
}

fn headline(files: &Files, severity: &str, e: &ConfigError) -> String {
    match e.span.and_then(|s| files.0.get(usize::from(s.file)).map(|f| (s, f))) {
        Some((s, file)) => format!("{}:{}:{}: {severity}: {}", file.name, s.line, s.column, e.message),
        None => format!("{severity}: {}", e.message),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use onehop_filters::contract::Span;

    #[test]
    fn an_error_shows_its_line_and_a_caret() {
        let files = Files::new(vec![File { name: "a.yaml".into(), text: "x:\n\tport: 80\n".into() }]);
        let e =
            ConfigError::at(Span { file: 0, line: 2, column: 2 }, "unknown key `port`").help("did you mean `bind`?");
        let report = files.report(vec![e]);
        assert_eq!(
            report.to_string(),
            "a.yaml:2:2: error: unknown key `port`\n  |\n2 | \tport: 80\n  | \t^\nhelp: did you mean `bind`?\n\n"
        );
        assert_eq!(report.to_json()[0]["line"], 2);
        assert_eq!(report.lines(), ["a.yaml:2:2: error: unknown key `port`"]);
    }

    #[test]
    fn of_a_long_line_only_the_part_around_the_place_is_shown() {
        let line = format!("{}X{}", "a".repeat(5000), "b".repeat(5000));
        let (shown, lead) = window(&line, 5000);
        assert!(shown.len() <= 160);
        assert_eq!(shown.find('X'), Some(lead.len()));
    }

    #[test]
    fn a_place_outside_the_text_is_no_panic() {
        let files = Files::new(vec![File { name: "a".into(), text: String::new() }]);
        for (line, column) in [(0, 0), (1, 1), (9, 9)] {
            let shown = files.report(vec![ConfigError::at(Span { file: 0, line, column }, "m")]).to_string();
            assert!(shown.contains("error: m"));
        }
    }
}
