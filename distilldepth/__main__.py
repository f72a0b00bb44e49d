"""`python -m distilldepth`: the command, where its script is not on the path."""

from distilldepth.cli.main import main

if __name__ == "__main__":
    main()
