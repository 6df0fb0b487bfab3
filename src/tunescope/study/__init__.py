"""What will be done: the study file, its plan and its identities. Pure; imports no torch and no other room."""
