//! Metrics exposition, access log, spans.
