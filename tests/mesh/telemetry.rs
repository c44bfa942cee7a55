//! In work by a second test colleague (files: tcp, limits, telemetry, panic, hostile, idle, cli, pages).
