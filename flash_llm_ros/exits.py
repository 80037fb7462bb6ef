"""What ends a program; all else that is raised is an error, panics of Rust libraries included."""

# Panics derive from BaseException, as these do: whoever handles what a library raises lets these
# through, and takes the rest.
EXITS = (KeyboardInterrupt, SystemExit, GeneratorExit)
