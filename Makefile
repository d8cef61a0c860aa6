# `make all` installs sepo and runs the whole pipeline: on the built-in demo, or on MODEL and DATASET.
# `make test` installs and passes the tests. `make help` lists the rest.
