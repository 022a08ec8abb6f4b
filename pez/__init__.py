"""Where does physics become readable in a frozen video encoder: stimuli, features, probes, figures."""

__version__ = "0.1.0"
