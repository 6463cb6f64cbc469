"""The only package that touches Flower: the two apps, the grid on this machine, messages, the gate, the launch."""
