"""The server: settings, the HTTP application, the thread that owns the engine, and the engine itself."""
